"""Results of earlier versions, and what a pickle of today says."""

from __future__ import annotations

import base64
import copy
import pickle
import pickletools
from dataclasses import replace

from mlx_magic import VisionResult

# Written by the commit before classes moved to `engine` and `images`.
BEFORE = "".join(
    [
        "fCQD00ssI20001t8*OZOUu|J$X=5&FZf0e2Wo~0-E^=jYb!BsOl#C2kX>)0BZc=4)b!>E$lawielwFi4",
        "j1W|JZy<7IWFT{KbzyR4b1syO5-)UZa4&RiaB*aGVsv3{Y%gt;j0AIZZ*Y`OPK+OIY<OR7VP|P$E@^IN",
        "WpZV1V`VOBZDD6+UukY|b##=B3Q28YXJtulaCLN)lawielzo&aj0SLNcx7yJl#B^bNlY$DZDD6+l#B&Q",
        "ZDD6+l#`Sxfs|d8D1DTS15!sqluHOp28NVQLy-Rf0RI30{{R60009300RI30{{R60009300RI30{{R60",
        "009300RI30{{R60009300RI30{{R60009300RI30{{R60009300RI30{{R60009300RI30{{R6000930",
        "0RI30{{R60009300RI30{{R60009300RI30{{R60009300RI30{{R60005L_VvGiJZ*_8GWt5BwP)ST6",
        "X>DO=Wt5B!Z*pm8X>MU`Uvp`CWt2+@O9qCNj0R+BXJvDAl#D<&VmUcxGBG$gVqr5mG%_|~IAJ(tIX7iw",
        "W??flGC46YF=k;nHZfvlIW{n1H)Jw0GB!6kV`VrpWMyJyHZ(buj0A3PbY+xIj0<0MXmxF3ZeeL`bCi9Q",
        "bz+5-XaI}_RdZoyWt5YYDS?z-lqgFBOAt!{O9N$MXaI}{RB3H#ZfA3plawielwFi4M?coHk3M$*07pNb",
        "dL-7M002in9NK4a0000-KMN9>-~a#sM?WY5O85W(07pOAo->39002io(jFoOL4i+4K*dxqGiGYnWnxPJ",
        "j0;z2VRRsAb0BGSKa`9FbY*ySlqpV5WnwM",
    ]
)


def test_a_result_of_an_earlier_version_loads() -> None:
    result = pickle.loads(base64.b85decode(BEFORE))
    assert type(result) is VisionResult
    assert result.text == "Two red squares."
    assert [image.size for image in result.images] == [(8, 6)]
    assert result.usage.completion_tokens > 0
    assert result.reasoning == ""


def test_a_result_is_pickled_by_its_public_name() -> None:
    result = pickle.loads(base64.b85decode(BEFORE))
    written = pickle.dumps(result)
    names = [value for _, value, _ in pickletools.genops(written) if isinstance(value, str)]
    assert VisionResult.__module__ == "mlx_magic"
    assert not any(name.startswith("mlx_magic.inference") for name in names)
    assert pickle.loads(written).text == result.text


def test_a_result_with_thoughts_is_pickled_whole() -> None:
    result = VisionResult("Red.", "demo", "stop", reasoning="So it is.")
    for made in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), replace(result)):
        assert (made.text, made.reasoning, made.images) == ("Red.", "So it is.", ())
