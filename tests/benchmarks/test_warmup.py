"""The benchmark of the first request after a load: its figures, and one real process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import warmup
from mlx_magic.demo import folder as bundled


def test_each_variant_runs_equally_often_and_is_compared_in_pairs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names: list[str] = []

    def process(name: str, model: Path, images: list[str]) -> dict[str, Any]:
        names.append(name)
        assert len(images) == len(warmup.QUESTIONS)
        return {"load": 2.0, "first": [0.4, 0.1, 0.1] if name == "raw" else [0.12, 0.1, 0.1]}

    monkeypatch.setattr(warmup, "_process", process)
    report = warmup.measure(tmp_path, tmp_path, runs=2, deadline=time.monotonic() + 60)
    assert names == ["ours", "raw", "raw", "ours"]
    rows = {row.what: row.summary.median for row in report.rows}
    assert rows["raw: first request/second, first token"] == pytest.approx(4)
    assert rows["ours/raw: load and first request"] == pytest.approx(2.12 / 2.4)
    (target,) = report.targets
    assert target.met
    assert target.measured == pytest.approx(1.2)


def test_benchmark_process_loads_and_answers(tmp_path: Path) -> None:
    from benchmarks.workload import DrawnImages

    images = DrawnImages(tmp_path)
    found = warmup._process("ours", bundled(), [images.draw() for _ in warmup.QUESTIONS])
    assert found["load"] > 0
    assert len(found["first"]) == len(warmup.QUESTIONS)
    assert all(0 < seconds < 60 for seconds in found["first"])
