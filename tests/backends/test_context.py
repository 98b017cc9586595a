"""A prompt beyond a model's context is refused; an answer ends where the context does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mlx_magic
from mlx_magic import default_session
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.errors import ContextLengthError

pytestmark = pytest.mark.model

CONTEXT = 4096
"""Of the bundled model, whose images take 64 tokens each."""


def dots(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (32, 32), (at, 0, 255 - at)) for at in range(count)]


def test_images_beyond_the_context_are_refused_with_numbers() -> None:
    with pytest.raises(ContextLengthError) as caught:
        mlx_magic.ask("What is it?", dots(64), "demo")
    error = caught.value
    assert (error.limit_tokens, error.image_tokens) == (CONTEXT, CONTEXT)
    assert error.needed_tokens > CONTEXT
    assert str(error).startswith(f"demo: the prompt has {error.needed_tokens:,} tokens (4,096 of")
    assert str(error).endswith("context is 4,096: fewer images would help.")


def test_words_beyond_the_context_are_refused() -> None:
    with pytest.raises(ContextLengthError, match=r"\(0 of images\).*a shorter prompt would help"):
        mlx_magic.ask("a red square " * 2_000, model="demo")


def test_answer_ends_where_the_context_does() -> None:
    whole = mlx_magic.ask("What is it?", dots(1), "demo", temperature=0)
    words = "red " * (CONTEXT - whole.usage.prompt_tokens - 200)
    result = mlx_magic.ask(words, dots(1), "demo", temperature=0, max_tokens=9_999)
    while result.usage.prompt_tokens < CONTEXT - 8:
        words += "red " * max((CONTEXT - 4 - result.usage.prompt_tokens) // 2, 1)
        result = mlx_magic.ask(words, dots(1), "demo", temperature=0, max_tokens=1)
    result = mlx_magic.ask(words, dots(1), "demo", temperature=0, max_tokens=9_999)
    assert result.usage.total_tokens <= CONTEXT
    assert result.finish_reason == "length" or result.usage.total_tokens < CONTEXT


def test_many_image_tokens_are_announced_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlx_magic.backends import model
    from mlx_magic.engine.request import GenerationRequest

    monkeypatch.setattr(model, "MANY_IMAGE_TOKENS", 128)
    seen: list[str] = []
    chunks: list[GenerationChunk] = []
    request = GenerationRequest("What is it?", model="demo")
    images: list[tuple[str, Any]] = [(f"dot {at}", dot) for at, dot in enumerate(dots(3))]
    generation = default_session.current().start(request, images=images, sink=chunks.append)
    generation.observe(lambda snapshot: seen.append(snapshot.progress.note))
    generation.future.result(60)
    assert [chunk.hint for chunk in chunks if chunk.seen] == ["192 image tokens"]
    assert not any("max-pixels" in chunk.hint for chunk in chunks), "it would not help this model"


def test_suggestion_of_fewer_pixels_is_computed_from_the_grid() -> None:
    np = pytest.importorskip("numpy")
    from mlx_magic.backends.vision.inputs import fewer_tokens

    inputs = {"image_grid_thw": np.array([[1, 100, 200], [1, 10, 10]])}
    tokens = (20_000 + 100) // 4
    assert fewer_tokens(inputs, 14, tokens, 10**9) == tokens
    assert fewer_tokens(inputs, 14, tokens, 14 * 14 * 2_000) == (2_000 + 100) // 4
    assert fewer_tokens({"pixel_values": 1}, 14, tokens, 1) is None


def test_error_is_one_line_in_a_cell(tmp_path: Path) -> None:
    from IPython.core.error import UsageError

    from mlx_magic.notebook.kernel.cell_errors import one_line_errors

    with pytest.raises(UsageError, match="context"), one_line_errors():
        mlx_magic.ask("a red square " * 2_000, model="demo")
