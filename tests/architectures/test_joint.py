"""Questions that are asked at once share an encoder call and a prefill, and get raw's answers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.backends.batch_check import compare_rows
from mlx_magic.backends.batching.batch import Slot
from mlx_magic.backends.batching.model_batch import ModelBatch
from mlx_magic.backends.device import platform
from mlx_magic.backends.vision.image_cache.encoders import EncoderCall
from tests.architectures.conftest import Build
from tools.model_table.compare import Comparison
from tools.model_table.questions import IMAGE, TEXT, TWO

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("templates_render_here")]

QUESTIONS = (
    replace(IMAGE, prompt="What is in this picture?"),
    replace(IMAGE, name="other", prompt="Which colours are there?", images=TWO.images[1:]),
    TWO,
    replace(IMAGE, name="again", prompt="How many corners has it?"),
    TEXT,
)

# gemma3 has windows, qwen3_vl rotary positions in three parts and features for deeper layers.
NAMES = ["gemma3", "qwen3_vl"]
if os.environ.get("MLX_MAGIC_EVERY"):
    NAMES += ["qwen2_vl", "qwen2_5_vl", "qwen3_5", "gemma3n", "lfm2_vl", "smolvlm", "aya_vision"]


@pytest.mark.parametrize("name", NAMES)
def test_images_and_prompts_are_read_together(
    name: str, tiny: Build, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_rows, "SECONDS", 60.0)
    monkeypatch.setattr(platform, "images_at_once", lambda: 8)  # as on a GPU
    rows: list[int] = []
    calls: list[int] = []
    start, join = ModelBatch._start_prefill, EncoderCall.concatenated

    def started(self: ModelBatch, slots: list[Slot]) -> Any:
        rows.append(len(slots))
        return start(self, slots)

    def joined(calls_: list[EncoderCall]) -> EncoderCall:
        calls.append(len(calls_))
        return join(calls_)

    monkeypatch.setattr(ModelBatch, "_start_prefill", started)
    monkeypatch.setattr(EncoderCall, "concatenated", joined)
    model, folder = tiny(name)
    comparison = Comparison(folder, model.library, files)
    ours = comparison.load()
    assert ours.loaded.together.together, ours.loaded.together.why
    for question, answer in zip(QUESTIONS, ours.ask(*QUESTIONS), strict=True):
        assert answer == comparison.raw(question), question.name
    assert max(rows) > 1
    if name in ("gemma3", "qwen2_5_vl", "qwen3_vl", "qwen3_5"):
        assert calls, "the images of two questions have gone through one call"
    ours.close()
