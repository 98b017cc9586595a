from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import figures, machine
from benchmarks.figures import Report


def test_summary_quotes_the_median() -> None:
    held = figures.summary([3.0, 1.0, 10.0])
    assert (held.median, held.lowest, held.highest, held.n) == (3.0, 1.0, 10.0, 3)


def test_empty_measurement_is_an_error() -> None:
    with pytest.raises(ValueError, match="Nothing was measured"):
        figures.summary([])


def test_ratios_are_computed_from_pairs() -> None:
    assert figures.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        figures.ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("measured", "at_least", "met"),
    [(0.96, True, True), (0.95, True, True), (0.94, True, False), (0.94, False, True)],
)
def test_target_is_a_minimum_or_a_maximum(measured: float, at_least: bool, met: bool) -> None:
    report = Report("cell")
    report.expect("a ratio", measured, 0.95, at_least=at_least)
    assert report.targets[0].met is met
    assert ("MISSED" in report.table()) is not met


@given(st.floats(min_value=-1e12, max_value=1e12))
def test_rounding_keeps_five_digits(value: float) -> None:
    rounded = figures.rounded({"a": [value], "b": ("words", 1)})
    assert rounded["a"][0] == pytest.approx(value, rel=1e-4)
    assert rounded["b"] == ["words", 1]


def test_saved_report_reads_back(tmp_path: Path) -> None:
    report = Report("cell", {"tokens": 3})
    report.add("decode", "tokens/s", [1.0, 2.0])
    report.expect("ratio", 1.5, 1.1)
    path = report.save(tmp_path / "new", {"processor": "A, 2 cores"}, "a-2-cores")
    held = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "cell-a-2-cores.json"
    assert held["measured"][0]["summary"] == {"median": 1.5, "lowest": 1, "highest": 2, "n": 2}
    assert held["targets"][0]["met"] is False
    assert held["machine"] == {"processor": "A, 2 cores"}


def test_machine_is_named_by_its_gpu_if_it_has_one() -> None:
    held = {"processor": "Some(R) CPU, 16 cores"}
    assert machine.label(held) == "some-r-cpu-16-cores"
    assert machine.label({**held, "gpu": "Vendor X1 80GB"}) == "vendor-x1-80gb"
