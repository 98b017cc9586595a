"""Special tokens that mark places, which a detokenizer leaves out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlx_magic.backends.vision.inputs import resized_sizes
from mlx_magic.backends.vision.place_tokens import marked, place_tokens

WORDS = ["<s>", "</s>", "<loc_5>", "<loc_999>", "<|box_start|>", "<|box_end|>", "<image>",
         "<loc0003>", "<od>", "cat", "(1,2)"]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, "<s>"))
    inner.decoder = decoders.Fuse()
    special = WORDS[:9]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", additional_special_tokens=special
    )


def test_tokens_that_mark_places_are_put_back_and_others_are_not(tokenizer: Any) -> None:
    special = set(tokenizer.all_special_ids)
    places = place_tokens(tokenizer, special)
    assert {WORDS[token] for token in places} == {
        "<loc_5>", "<loc_999>", "<|box_start|>", "<|box_end|>", "<loc0003>",
    }  # fmt: skip
    answer = [0, 9, 2, 3, 8, 4, 10, 5, 1]
    text = marked(answer, tokenizer, special, places)
    assert text == "cat<loc_5><loc_999><|box_start|>(1,2)<|box_end|>"
    assert marked([0, 9, 1], tokenizer, special, places) == ""


@pytest.mark.parametrize(
    ("inputs", "count", "expected"),
    [
        ({"image_grid_thw": np.array([[1, 8, 12], [1, 2, 4]])}, 2, ((168, 112), (56, 28))),
        ({"image_grid_thw": np.array([[1, 8, 12]])}, 2, ()),
        ({"pixel_values": np.zeros((1, 3, 64, 96))}, 1, ()),
    ],
)
def test_only_packed_patches_tell_the_size_of_a_whole_image(
    inputs: dict[str, Any], count: int, expected: tuple[tuple[int, int], ...]
) -> None:
    assert resized_sizes(inputs, count, patch=14) == expected
