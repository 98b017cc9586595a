"""NumPy's numbers are numbers in every option and setting, and are kept as plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from traitlets import TraitError
from traitlets.config import Config

import mlx_magic
from mlx_magic.argument_checks import plain
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.errors import RequestError
from mlx_magic.images.image import fit_pixels
from mlx_magic.notebook.magics import VisionMagics
from mlx_magic.options import OPTIONS, RequestOption
from mlx_magic.testing import ScriptedBackend
from tests import checkpoints
from tests.scripted_default import scripted_default

INTEGERS = (
    *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    *(np.longlong, np.ulonglong),
)
FLOATS = (np.float16, np.float32, np.float64, np.longdouble)
NUMBERS = [option for option in OPTIONS if option.kind in ("integer", "number")]
# Those of a cell alone are no part of a request.
ASKED = [option for option in NUMBERS if option.target != "cell"]
WORKS = {"top_p": 1, "min_p": 1, "kv_bits": 8}
"""A number that the option takes, where 2 is not one."""


@pytest.fixture
def session() -> Iterator[ScriptedBackend]:
    with scripted_default("One two three.") as script:
        yield script


@pytest.fixture
def magics() -> VisionMagics:
    return VisionMagics(InteractiveShell())


def is_plain(value: object) -> bool:
    return type(value) in (int, float)


def kept_by(option: RequestOption, value: Any) -> object:
    """Return what a request keeps of the value of an option; refuse it as a request does."""
    values = {option.name: value}
    if option.target == "sampling":
        return getattr(Sampling(**values), option.name)
    if option.target == "request":
        return getattr(GenerationRequest(prompt="a", **values), option.name)
    fit_pixels((1, 1), value)
    return plain(value)


@given(st.sampled_from(INTEGERS), st.integers(0, 127), st.sampled_from(ASKED))
def test_every_option_takes_each_integer_type_of_numpy(kind: Any, number: int, option: Any) -> None:
    value = WORKS.get(option.name, max(number, 1))
    kept = kept_by(option, kind(value))
    assert kept == value
    assert type(kept) is int


@given(st.sampled_from(FLOATS), st.floats(0.125, 1, width=16), st.sampled_from(ASKED))
def test_every_number_option_takes_each_float_type_of_numpy(
    kind: Any, number: float, option: Any
) -> None:
    if option.kind == "integer":
        # A fraction is no whole number, whoever made it.
        with pytest.raises(RequestError, match=option.name):
            kept_by(option, kind(number))
        return
    kept = kept_by(option, kind(number))
    assert kept == number
    assert type(kept) is float


@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: str(option.name))
def test_config_takes_numbers_of_numpy(magics: VisionMagics, option: Any) -> None:
    value = WORKS.get(option.name, 2)
    kinds = [*INTEGERS, *(FLOATS if option.kind == "number" else ())]
    for kind in kinds:
        magics.update_config(Config({"VisionMagics": {option.name: kind(value)}}))
        kept = getattr(magics, option.name)
        assert kept == value
        assert is_plain(kept), kind
    for wrong in (np.str_("2"), "2", np.array([2, 3])):
        with pytest.raises(TraitError):
            setattr(magics, option.name, wrong)


def test_config_takes_flags_of_numpy(magics: VisionMagics) -> None:
    values: Any = magics
    values.show = np.bool_(False)
    assert values.show is False
    with pytest.raises(TraitError):
        values.show = np.int64(0)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int8, np.int64])
def test_pool_takes_numbers_of_numpy(
    session: ScriptedBackend, magics: VisionMagics, kind: Any
) -> None:
    pool = mlx_magic.pool
    pool.idle_ttl = kind(60)
    assert (pool.idle_ttl, type(pool.idle_ttl)) == (60, float)
    pool.budget = kind(1)
    assert (pool.budget, is_plain(pool.budget)) == (1, True)
    magics.idle_ttl = kind(30)
    magics.memory_budget = kind(1)
    assert (pool.idle_ttl, type(magics.idle_ttl)) == (30, float)
    assert is_plain(magics.memory_budget)


def test_small_integers_do_not_overflow_in_an_answer(
    session: ScriptedBackend, tmp_path: Path
) -> None:
    model = checkpoints.good(tmp_path / "model")
    numbers: dict[str, Any] = {"max_tokens": np.int8(127), "timeout": np.float16(60)}
    numbers |= {"seed": np.uint64(2**64 - 1), "max_pixels": np.uint16(10_000)}
    assert mlx_magic.ask("a", model=model, **numbers).text == "One two three."
    sampling = session.requests[0].sampling
    assert (sampling.max_tokens, sampling.seed) == (127, 2**64 - 1)
    assert is_plain(session.requests[0].timeout)


def test_max_pixels_is_checked_before_the_model_is_looked_for(session: ScriptedBackend) -> None:
    with pytest.raises(RequestError, match="max_pixels is -3"):
        mlx_magic.ask("a", model="not-there", max_pixels=-3)


def test_what_is_no_number_stays_as_it_is() -> None:
    for value in (True, np.bool_(True), "5", None, np.array(5), 1 + 2j):
        assert plain(value) is value
    assert plain(Fraction(1, 2)) == 0.5
    for huge in (Fraction(10**400, 1), 10**400):
        with pytest.raises(RequestError, match="use a smaller number"):
            Sampling(temperature=huge)  # type: ignore[arg-type]


def test_texts_of_numpy_are_kept_as_plain_texts() -> None:
    request = GenerationRequest(prompt=np.str_("a"), system=np.str_("b"), format=np.str_("json"))  # type: ignore[arg-type]
    assert {type(text) for text in (request.prompt, request.system, request.format)} == {str}


@pytest.mark.parametrize("kind", INTEGERS)
def test_limit_of_a_map_takes_integers_of_numpy(session: ScriptedBackend, kind: Any) -> None:
    images = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (1, 2, 3)]
    assert len(mlx_magic.map("What?", images, limit=kind(2), journal=False)) == 2


@pytest.mark.parametrize("kind", FLOATS)
def test_limit_of_a_map_takes_no_float(session: ScriptedBackend, kind: Any) -> None:
    with pytest.raises(RequestError, match="limit"):
        mlx_magic.map("What?", [Image.new("RGB", (8, 8))], limit=kind(2), journal=False)
