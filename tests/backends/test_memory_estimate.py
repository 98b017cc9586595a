"""The memory estimate of a request, and the refusal of one that cannot fit."""

from __future__ import annotations

import pytest

from mlx_magic.backends.batching.memory_estimate import (
    ModelDimensions,
    RequestMemory,
    estimate_request,
    require_memory,
)
from mlx_magic.errors import MemoryBudgetError

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


def test_shape_comes_from_the_language_model_config() -> None:
    shape = ModelDimensions.of(QWEN)
    assert shape == ModelDimensions(36, 16, 2, 128, 2048, 151_936)
    # Qwen2.5-VL-3B in bfloat16: 36 KiB a token.
    assert shape.kv_bytes(2) == 36_864


def test_old_and_missing_config_names_are_handled() -> None:
    assert (
        ModelDimensions.of({"n_layer": 12, "n_head": 12, "n_embd": 768}).kv_bytes(4)
        == 12 * 2 * 768 * 4
    )
    assert ModelDimensions.of({}).kv_bytes(4) == 0
    assert ModelDimensions.of({"num_hidden_layers": "many", "text_config": None}).layers == 0


def test_explicit_head_size_takes_precedence() -> None:
    assert ModelDimensions.of({**QWEN["text_config"], "head_dim": 64}).head_size == 64  # type: ignore[dict-item]


def test_quantized_kv_cache_needs_less_memory() -> None:
    shape = ModelDimensions.of(QWEN)
    # A byte each, and a scale and a bias of two bytes for 64 of them.
    assert shape.kv_bytes(2, 8) == 36_864 // 2 * (64 + 4) // 64
    assert shape.kv_bytes(2, 4) == 36_864 // 2 * (32 + 4) // 64

    def reckoned(kv_bits: int | None) -> RequestMemory:
        return estimate_request(
            shape, prompt_tokens=16_000, max_tokens=512, chunk=2048, itemsize=2, kv_bits=kv_bits
        )

    plain, eight, four = reckoned(None), reckoned(8), reckoned(4)
    assert plain.cache > 1.8 * eight.cache > 3.3 * four.cache
    assert plain.reading == eight.reading == four.reading


@pytest.mark.parametrize(
    ("head", "group"), [(256, 64), (128, 64), (96, 32), (32, 32), (80, 0), (72, 0), (16, 0)]
)
def test_quantizable_head_sizes(head: int, group: int) -> None:
    assert ModelDimensions.of({"head_dim": head}).kv_group == group


def test_unknown_head_size_counts_as_quantizable() -> None:
    assert ModelDimensions.of({}).kv_group == 32


def test_refusal_suggests_kv_bits_if_possible() -> None:
    def refusal(needed: RequestMemory, *, may_quantize: bool) -> str:
        with pytest.raises(MemoryBudgetError) as caught:
            require_memory(
                "qwen", needed, free=1, prompt_tokens=9, image_tokens=0, max_tokens=1,
                may_quantize=may_quantize,
            )  # fmt: skip
        return str(caught.value)

    assert "--kv-bits 8, unloading" in refusal(RequestMemory(9, 5), may_quantize=True)
    assert "--kv-bits" not in refusal(RequestMemory(9, 5), may_quantize=False)
    assert "--kv-bits" not in refusal(RequestMemory(5, 9), may_quantize=True)


def test_images_and_long_answers_need_more_memory() -> None:
    def total(prompt: int, answer: int) -> int:
        return estimate_request(
            ModelDimensions.of(QWEN),
            prompt_tokens=prompt,
            max_tokens=answer,
            chunk=2048,
            itemsize=2,
        ).total

    assert total(16_000, 512) > total(1_000, 512) > total(1_000, 64)


def test_prefill_logits_count_toward_memory() -> None:
    def reckoned(at_once: int) -> RequestMemory:
        return estimate_request(
            ModelDimensions.of(QWEN), prompt_tokens=1_000, max_tokens=1, chunk=2048, itemsize=2,
            at_once=at_once,
        )  # fmt: skip

    some, none = reckoned(100), reckoned(0)
    assert some.logits == 100 * 2 * ModelDimensions.of(QWEN).vocabulary > 0
    assert (none.logits, none.cache, none.reading) == (0, some.cache, some.reading)
    assert some.total - none.total == some.logits


def test_request_that_fits_is_admitted() -> None:
    require_memory(
        "qwen", RequestMemory(5, 5), free=10, prompt_tokens=1, image_tokens=0, max_tokens=1
    )


def test_refusal_has_the_numbers_and_a_remedy() -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        require_memory(
            "qwen",
            RequestMemory(3_000_000_000, 500_000_000),
            free=1_200_000_000,
            prompt_tokens=20_000,
            image_tokens=19_000,
            max_tokens=512,
        )
    assert str(caught.value) == (
        "qwen would need 3.50 GB to read 20,000 tokens (19,000 of images) and write up to 512, "
        "but 1.20 GB are free: a smaller --max-pixels or fewer images, unloading another model "
        "would help."
    )
    assert caught.value.needed_bytes == 3_500_000_000
    assert caught.value.limit_bytes == 1_200_000_000
