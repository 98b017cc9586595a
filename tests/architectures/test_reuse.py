"""A later question about the same image reads only what is new, and gets raw mlx-vlm's answer."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_magic.backends.batch_check import compare_rows
from tests.architectures.conftest import Build
from tools.model_table.compare import Comparison
from tools.model_table.ours import Asked
from tools.model_table.questions import IMAGE, SECOND_IMAGE, TWO, Question, Turn

pytestmark = pytest.mark.model

FIRST = replace(IMAGE, prompt="What is in this picture, and of what colour is it?")
ALSO = replace(IMAGE, name="also", prompt="How many corners has it, and where are they?")
TURN = Turn(FIRST.prompt, "A ring.", FIRST.images)
FOLLOWS = replace(FIRST, name="follows", prompt="And what is left?", images=(), history=(TURN,))
ADDS = replace(SECOND_IMAGE, name="adds an image", history=(TURN,))
BOTH = replace(TWO, name="both, again", prompt="Which one is larger?")
QUESTIONS = (FIRST, ALSO, FOLLOWS, ADDS, FIRST, TWO, BOTH, ALSO)


# Not gemma4: in a process that has loaded certain other models, transformers does not find its
# feature extractor, for mlx-vlm alone as well.
NAMES = ["qwen3_vl", "qwen3_5", "gemma3"]
if os.environ.get("MLX_MAGIC_EVERY"):
    NAMES += [
        "smolvlm",
        "qwen2_vl",
        "qwen2_5_vl",
        "lfm2_vl",
        "gemma3n",
        "aya_vision",
        "qwen3_vl_moe",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_second_question_about_an_image_reads_only_what_is_new(
    name: str, tiny: Build, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_rows, "SECONDS", 60.0)
    model, folder = tiny(name)
    comparison = Comparison(folder, model.library, files)
    ours = comparison.load()
    assert ours.loaded.together.together, ours.loaded.together.why

    def asked(question: Question) -> Asked:
        each = ours.begin(question)
        ours.run([each])
        assert each.answer == comparison.raw(question), question.name
        return each

    cached = {question.name: asked(question).cached for question in QUESTIONS[:3]}
    assert cached[FIRST.name] == 0
    assert cached["also"] > 16
    assert cached["follows"] > 16
    added = asked(ADDS)
    # Where tokens cannot be told by image, all images have one key.
    one_key = name in ("lfm2_vl", "gemma3n")
    assert added.cached > 16 or one_key, "the earlier turn and its image are known"
    for question in QUESTIONS[4:]:
        asked(question)
    ours.close()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_reused_prefixes_are_right_in_a_batch(
    name: str, tiny: Build, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_rows, "SECONDS", 60.0)
    model, folder = tiny(name)
    comparison = Comparison(folder, model.library, files)
    ours = comparison.load()
    for _ in range(2):
        for question, answer in zip(QUESTIONS, ours.ask(*QUESTIONS), strict=True):
            assert answer == comparison.raw(question), question.name
    assert ours.loaded.reuse.prefix_hits > 4
    ours.close()
