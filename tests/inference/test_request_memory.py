"""What a request will take, and the refusal of one that cannot fit."""

from __future__ import annotations

import pytest

from mlx_magic.errors import MemoryBudgetError
from mlx_magic.inference.request_memory import Need, Shape, need, require_room

QWEN = {
    "vocab_size": 151_936,
    "text_config": {
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "hidden_size": 2048,
    },
    "vision_config": {"hidden_size": 1280},
}


def test_the_shape_is_read_from_the_language_model() -> None:
    shape = Shape.of(QWEN)
    assert shape == Shape(36, 16, 2, 128, 2048, 151_936)
    # Qwen2.5-VL-3B in bfloat16: 36 KiB a token.
    assert shape.kv_bytes(2) == 36_864


def test_old_names_and_missing_ones() -> None:
    assert Shape.of({"n_layer": 12, "n_head": 12, "n_embd": 768}).kv_bytes(4) == 12 * 2 * 768 * 4
    assert Shape.of({}).kv_bytes(4) == 0
    assert Shape.of({"num_hidden_layers": "many", "text_config": None}).layers == 0


def test_a_head_size_of_its_own_counts() -> None:
    assert Shape.of({**QWEN["text_config"], "head_dim": 64}).head_size == 64  # type: ignore[dict-item]


def test_pictures_and_long_answers_take_more() -> None:
    def total(prompt: int, answer: int) -> int:
        return need(
            Shape.of(QWEN), prompt_tokens=prompt, max_tokens=answer, chunk=2048, itemsize=2
        ).total

    assert total(16_000, 512) > total(1_000, 512) > total(1_000, 64)


def test_what_fits_is_let_through() -> None:
    require_room("qwen", Need(5, 5), free=10, prompt_tokens=1, image_tokens=0, max_tokens=1)


def test_a_refusal_has_the_numbers_and_what_would_help() -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        require_room(
            "qwen",
            Need(3_000_000_000, 500_000_000),
            free=1_200_000_000,
            prompt_tokens=20_000,
            image_tokens=19_000,
            max_tokens=512,
        )
    assert str(caught.value) == (
        "qwen would need 3.50 GB to read 20,000 tokens (19,000 of pictures) and write up to 512, "
        "but 1.20 GB are free: a smaller --max-pixels or fewer pictures, unloading another model "
        "would help."
    )
    assert caught.value.needed_bytes == 3_500_000_000
    assert caught.value.limit_bytes == 1_200_000_000
