"""No loader of mlx-vlm or mlx-lm runs a checkpoint's code, even if it requests remote code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.loaders import EVERY

pytestmark = [pytest.mark.model, pytest.mark.timeout(1300)]

Outcomes = dict[str, dict[str, dict[str, Any]]]

# They request remote code themselves, or default to True.
NAMED = (
    "got.processing_got.GotOcrProcessor.from_pretrained",
    "inkling.processing_inkling.InklingProcessor.from_pretrained",
    "internvl_chat.processor.InternVLChatProcessor.from_pretrained",
    "deepseekocr.processing_deepseekocr.DeepseekOCRProcessor.from_pretrained",
    "moondream3.processing_moondream3.Moondream3Processor.from_pretrained",
    "kimi_vl.processing_kimi_vl.KimiVLProcessor.from_pretrained",
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What each loader did, under the guard and without it."""
    folder = tmp_path_factory.mktemp("loaders")
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.loaders", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        cwd=Path(__file__).parents[2],
        env={
            **environment,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_MODULES_CACHE": str(folder / "modules"),
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: Outcomes = json.loads(done.stdout.splitlines()[-1])
    return found


def test_no_loader_runs_code_under_the_guard(outcomes: Outcomes) -> None:
    assert [name for name, ways in outcomes.items() if ways["guarded"]["ran"]] == []


def test_code_runs_without_the_guard(outcomes: Outcomes) -> None:
    ran = {name for name, ways in outcomes.items() if ways.get("bare", {}).get("ran")}
    assert {f"walk {name}" for name in NAMED} <= ran
    # Both libraries, models with their own code file, and dozens of processors.
    assert sum(name.startswith("walk ") for name in ran) >= 50 // (2 * EVERY)
    assert sum(name.startswith("mlx-vlm ") and "load_processor" in name for name in ran) >= 30 // (
        2 * EVERY
    )
    assert sum(name.startswith("mlx-vlm ") and "model_file" in name for name in ran) >= 30 // (
        2 * EVERY
    )
    assert any(name.startswith("mlx-lm ") and "load_tokenizer" in name for name in ran)
    assert any(name.startswith("mlx-lm ") and "model_file" in name for name in ran)


def test_code_that_would_run_is_refused_and_recorded(outcomes: Outcomes) -> None:
    for name, ways in outcomes.items():
        guarded = ways["guarded"]
        if ways.get("bare", {}).get("ran"):
            assert guarded["refused"], name
            # moondream3's loader takes the error for a missing file and asks the Hub.
            swallowed = name.startswith("walk moondream3.")
            assert swallowed or guarded["error"] == "UntrustedCodeError", (name, guarded)
        elif "bare" in ways:
            # A loader that runs no code fails or succeeds as without the guard.
            assert not guarded["refused"], name
            if not guarded["unreached"]:
                assert guarded["error"] == ways["bare"]["error"], name


def test_no_loader_reaches_the_hub_under_the_guard(outcomes: Outcomes) -> None:
    asked = {name for name, ways in outcomes.items() if ways.get("bare", {}).get("reached")}
    assert any("moondream2" in name for name in asked)
    for name, ways in outcomes.items():
        assert ways["guarded"]["reached"] == 0, name
        assert bool(ways["guarded"]["unreached"]) == (name in asked), name


def test_every_kind_of_loader_was_found(outcomes: Outcomes) -> None:
    walked = [name for name in outcomes if name.startswith("walk ")]
    assert sum(name.endswith(".from_pretrained") for name in walked) >= 120 // (2 * EVERY)
    assert sum(not name.endswith(".from_pretrained") for name in walked) >= 20 // (2 * EVERY)
    assert sum(name.startswith("mlx-vlm ") for name in outcomes) >= 150 // (2 * EVERY)
    assert sum(name.startswith("mlx-lm ") for name in outcomes) >= 150 // (2 * EVERY)
