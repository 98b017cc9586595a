"""Answers equal raw mlx-vlm's and mlx-lm's, token by token, for one checkpoint an architecture.

`make models` compares all checkpoints, variants too; this is the part that fits a test run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_magic.models.checkpoints import batch_support
from mlx_magic.models.checkpoints.batch_support import Verdict
from tests.architectures.conftest import Build
from tools.model_table.compare import Comparison, checked
from tools.model_table.ours import as_if
from tools.tiny_models.spec import all_models

pytestmark = [
    pytest.mark.model,
    # Deprecation warnings of the libraries do not matter here.
    pytest.mark.filterwarnings("default"),
]

SLOW = {"gemma3n", "phi3_v"}
"""Their image encoders have sizes fixed in the library: seconds per request."""

UNSTEADY = {entry.name for entry in batch_support.table() if "several answers" in entry.verdict.why}
"""The library itself is not deterministic for these, so there is nothing to compare with."""


def firsts() -> list[str]:
    """Return the first checkpoint of each architecture."""
    seen: dict[tuple[str, str], str] = {}
    for model in all_models():
        seen.setdefault((model.library, model.architecture), model.name)
    return [name for name in seen.values() if name not in SLOW | UNSTEADY]


# `make models` compares all of them, and so does MLX_MAGIC_EVERY=1.
EVERY = int(os.environ.get("MLX_MAGIC_EVERY", "6"))

# Its masks depend on an output of the processor: the tokens of an image see each other.
MASKS = ["gemma4-bidirectional"]


@pytest.mark.parametrize("name", [*firsts()[::EVERY], *MASKS])
def test_answers_equal_those_of_the_library(name: str, tiny: Build, files: dict[str, Path]) -> None:
    model, folder = tiny(name)
    tally = checked(folder, model.library, files)
    assert not tally.wrong
    assert tally.compared or tally.raw_fails


# docs/models.md says what is wrong with these. A library release that fixes one of them
# makes its case here fail: then run `make models` to write a new table.
@pytest.mark.parametrize("name", ["paligemma", "mllama", "phi3_v-rope-su", "text-afm7"])
@pytest.mark.xfail(strict=True, reason="the library's batches are wrong for it")
def test_architectures_that_are_wrong_in_batches_are_still_wrong(
    name: str, tiny: Build, files: dict[str, Path]
) -> None:
    model, folder = tiny(name)
    comparison = Comparison(folder, model.library, files)
    with as_if(Verdict(True, True)):
        ours = comparison.load()
        tally = comparison.together(ours)
        ours.close()
    assert not tally.wrong


def test_verdict_table_has_every_checkpoint() -> None:
    assert {model.name for model in all_models()} == {entry.name for entry in batch_support.table()}


def test_enough_architectures_are_compared() -> None:
    architectures = {(e.signature.library, e.architecture) for e in batch_support.table()}
    assert sum(library == "mlx-vlm" for library, _ in architectures) >= 35
    assert sum(library == "mlx-lm" for library, _ in architectures) >= 20
