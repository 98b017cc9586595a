"""Each hostile checkpoint is one error line or answers: no code, no hang, little memory."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import corpus

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]

PATIENCE = 150.0
"""Seconds until the next line of a trial: a case that hangs ends it. The first imports MLX."""

CPU = {"list": 2.0, "inspect": 2.0, "facts": 2.0, "ask": 8.0}
"""Seconds of work; a question is a load, a warm-up and an answer, each with templates' 2 s."""

Outcomes = dict[str, dict[str, Any]]


def lines(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Yield what a trial says, for as long as it goes on saying something."""
    assert process.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    rest = b""
    while True:
        ends = time.monotonic() + PATIENCE
        while b"\n" not in rest:
            if not selector.select(max(ends - time.monotonic(), 0)):
                process.kill()
                return
            read = os.read(process.stdout.fileno(), 65536)
            if not read:
                return
            rest += read
        line, _, rest = rest.partition(b"\n")
        yield json.loads(line)


def tried(which: str, folder: Path) -> Outcomes:
    """Try a set of the corpus in another process."""
    found: Outcomes = {}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hostile.trial", str(folder), which],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "MLX_MAGIC_CACHE": str(folder / "c"), "HF_HUB_CACHE": str(folder / "h")},
    )
    try:
        for said in lines(process):
            if "case" in said:
                found[said["case"]] = said
            else:
                found[said["begins"]] = {"hangs": True}
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Outcome of each case."""
    found: Outcomes = {}
    for which in ("text", "vision"):
        for name, outcome in tried(which, tmp_path_factory.mktemp(which)).items():
            found[f"{which} {name}"] = outcome
    return found


def test_every_case_was_tried_and_none_hangs(outcomes: Outcomes) -> None:
    names = {f"text {name}" for name in corpus.TEXT} | {f"vision {name}" for name in corpus.VISION}
    assert len(names) >= 60
    assert names - set(outcomes) == set()
    assert [name for name, outcome in outcomes.items() if "hangs" in outcome] == []


def test_ordinary_checkpoints_answer(outcomes: Outcomes) -> None:
    for which in ("text", "vision"):
        for step in ("list", "inspect", "facts", "ask"):
            assert outcomes[f"{which} good"][step] == ["", ""], (which, step)


def test_each_case_answers_or_is_an_error_of_one_line(outcomes: Outcomes) -> None:
    for name, outcome in outcomes.items():
        assert outcome["list"] == ["", ""], name
        # The bundled model and this one: a bad one hides neither itself nor the others.
        assert outcome["listed"] == (1 if "config.json" in name and outcome["listed"] == 1 else 2)
        for line in outcome["shown"]:
            assert line.isprintable(), name
        for step in ("inspect", "facts", "ask"):
            error, text = outcome.get(step, ["", ""])
            assert not error.startswith("!"), (name, step, error, text)
            assert text.isprintable(), (name, step, text)
            # The inference thread has not died, and other models with it.
            assert error != "EngineError", (name, step, text)
            assert len(text) < 3000, (name, step, text)


def test_no_case_runs_code(outcomes: Outcomes) -> None:
    assert [name for name, outcome in outcomes.items() if outcome["ran"]] == []


def test_no_case_needs_much_time_or_memory(outcomes: Outcomes) -> None:
    for name, outcome in outcomes.items():
        for step, seconds in outcome["cpu"].items():
            assert seconds < CPU[step] or name.endswith(" good"), (name, step, seconds)
        assert outcome["bytes"] < 500e6 or name.endswith(" good"), (name, outcome["bytes"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text num_hidden_layers_1000000000", "num_hidden_layers = 1000000000, but the weights"),
        ("text vocab_size_1000000000", "vocab_size = 1000000000"),
        ("text header_digits", "damaged header"),
        ("vision tower_depth_1000000000", "vision_config.depth = 1000000000"),
        ("vision images_max_pixels", "_pixels = 1000000000"),
        ("vision images_size_huge", "size.height = 1000000, but no model"),
        ("vision images_patch_1", "patch_size = 1, but with"),
        ("vision images_sequence", "image_seq_length = 1000000000"),
        ("text tokenizer_adds_100000", "adds more than 50000 tokens"),
    ],
)
def test_error_names_the_offending_number(outcomes: Outcomes, name: str, words: str) -> None:
    error, text = outcomes[name]["inspect"]
    assert error == "CheckpointError"
    assert words in text
    assert "ask" not in outcomes[name]
