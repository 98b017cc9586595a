"""Hostile images end within time and memory limits with one line; others are unchanged."""

from __future__ import annotations

import pytest

from tests.hostile.image_cases import CASES, LARGE, ODD
from tests.hostile.opening import MEGABYTES, OPENED, SECONDS, Outcome, outcomes


@pytest.fixture(scope="module")
def opened() -> dict[str, Outcome]:
    """Return what came of every case: one process opens them all."""
    return outcomes(list(CASES))


@pytest.fixture(scope="module")
def more() -> dict[str, Outcome]:
    """Return what came of Pillow images and arrays."""
    return outcomes([*(name + OPENED for name in ODD), *LARGE])


@pytest.mark.parametrize("name", CASES)
def test_hostile_image_opens_or_is_an_error_of_one_line(
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
    assert outcome.noise == ""


@pytest.mark.parametrize("name", ODD)
def test_already_open_image_writes_nothing_to_stderr(name: str, more: dict[str, Outcome]) -> None:
    outcome = more[name + OPENED]
    assert outcome.noise == ""
    if CASES[name].says is None:
        assert outcome.error is None
    else:
        assert outcome.error is not None
        assert "\n" not in outcome.error


@pytest.mark.parametrize("name", LARGE)
def test_64_megapixels_need_less_than_a_gigabyte_of_extra_memory(
    name: str, more: dict[str, Outcome]
) -> None:
    outcome = more[name]
    assert outcome.error is None
    assert outcome.megabytes < 1000
    assert outcome.noise == ""
