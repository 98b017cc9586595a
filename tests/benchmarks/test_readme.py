from __future__ import annotations

import json
from pathlib import Path

from benchmarks import readme
from benchmarks.figures import Report

MACHINE = {"processor": "A, 2 cores", "memory": "8 GiB", "system": "Linux", "date": "2026-01-02"}


def test_figures_replace_the_text_between_the_markers() -> None:
    text = f"Before.\n{readme.BEGIN}\nold\n{readme.END}\nAfter.\n"
    filled = readme.filled(text, ["| new |"])
    assert "old" not in filled
    assert "| new |" in filled
    assert filled.startswith("Before.\n")
    assert filled.endswith("\nAfter.\n")
    assert readme.filled(filled, ["| new |"]) == filled


def test_missed_target_is_shown(tmp_path: Path) -> None:
    report = Report("cell", {"model": "tiny"})
    report.add("decode", "tokens/s", [100.0])
    report.expect("ratio", 1.5, 1.1)
    path = report.save(tmp_path, MACHINE, "a")
    table = readme.table(json.loads(path.read_text(encoding="utf-8")))
    assert "| decode | 100 tokens/s | 100 to 100 | 1 |" in table
    assert "| ratio | 1.5 | at most 1.1 | **missed** |" in table


def test_committed_readme_has_the_committed_figures() -> None:
    text = (readme.HERE / "README.md").read_text(encoding="utf-8")
    found = sorted((readme.HERE / "results").glob("*.json"))
    assert found
    tables = [readme.table(json.loads(path.read_text(encoding="utf-8"))) for path in found]
    assert readme.filled(text, tables) == text
