"""Hostile pictures end in time, in memory, and in one line; honest ones stay as they were."""

from __future__ import annotations

import pytest

from tests.hostile.image_cases import CASES
from tests.hostile.opening import MEGABYTES, SECONDS, Outcome, outcomes


@pytest.fixture(scope="module")
def opened() -> dict[str, Outcome]:
    """Return what came of every case: one process opens them all."""
    return outcomes(list(CASES))


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_picture_ends_in_one_line_or_as_a_picture(
    name: str, opened: dict[str, Outcome]
) -> None:
    assert name in opened, "it never ended, or took its process with it"
    outcome, case = opened[name], CASES[name]
    if case.says is None:
        assert outcome.error is None
        assert outcome.note == case.note
    else:
        assert outcome.error is not None
        kind, _, line = outcome.error.partition(": ")
        assert kind in ("ImageDecodeError", "ImageTooLargeError")
        assert case.says in line
        assert line.startswith("x ")
        assert "\n" not in line
        assert len(line) < 300
    assert outcome.seconds < SECONDS
    assert outcome.megabytes < MEGABYTES
