"""The workflows of continuous integration run what exists, with few rights, on all Pythons."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def commands(path: Path) -> list[str]:
    steps = [step for job in jobs(path).values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step]


def test_there_is_a_workflow_for_changes_and_one_for_releases_of_libraries() -> None:
    assert [path.stem for path in WORKFLOWS] == ["checks", "upstream"]


def test_linux_is_tested_with_every_python_of_the_classifiers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [re.fullmatch(r".*:: (3\.\d+)", line) for line in project["classifiers"]]
    pythons = [match[1] for match in named if match]
    assert jobs(WORKFLOWS[0])["linux"]["strategy"]["matrix"]["python"] == pythons


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_uses_make_targets_and_paths_that_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9]+):", makefile, re.MULTILINE))
    lines = "\n".join(commands(path))
    used = {word for line in re.findall(r"^make (.+)$", lines, re.MULTILINE)
            for word in line.split()}  # fmt: skip
    assert used
    assert used <= targets
    for named in re.findall(r"\btests(?:/\w+)*", lines):
        assert (ROOT / named).is_dir()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_job_may_only_read_and_has_a_time_limit(path: Path) -> None:
    for job in jobs(path).values():
        assert job["permissions"] == {"contents": "read"}
        assert 0 < job["timeout-minutes"] <= 180


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_uses_actions_by_commit_and_with_its_release(path: Path) -> None:
    used = re.findall(r"uses: (.+)", path.read_text(encoding="utf-8"))
    assert used
    wrong = [line for line in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", line)]
    assert wrong == []
