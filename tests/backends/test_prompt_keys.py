"""Keys of prompt positions, and prompts whose keys must differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlx_magic.backends.prefix_cache.prompt_keys import ImageKeys, PromptKeys, prompt_keys_of

mx = pytest.importorskip("mlx.core")

IMAGE = 9


def image(seed: int, side: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, side, side)).astype(np.float32)


def prompt(*parts: Any, each: int = 3, **more: Any) -> dict[str, Any]:
    """Text as numbers, images as arrays; each image is `each` image tokens."""
    tokens: list[int] = []
    images = []
    for part in parts:
        if isinstance(part, int):
            tokens.append(part)
        else:
            images.append(part)
            tokens += [IMAGE] * each
    inputs: dict[str, Any] = {"input_ids": mx.array([tokens]), "mask": mx.ones((1, len(tokens)))}
    if images:
        inputs["pixel_values"] = mx.array(np.stack(images))[None]
    return {**inputs, **more}


def places(inputs: dict[str, Any], image_token: int | None) -> PromptKeys | None:
    return prompt_keys_of(inputs, image_token, ImageKeys.of(inputs))


def held(inputs: dict[str, Any]) -> list[Any]:
    found = places(inputs, IMAGE)
    assert found is not None
    return found.keys


def common(one: dict[str, Any], other: dict[str, Any]) -> int:
    pairs = zip(held(one), held(other), strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(held(one)), 99))


A, B, C = image(1), image(2), image(3)


def test_text_keys_are_token_ids() -> None:
    assert places(prompt(1, 2, 3), IMAGE) == PromptKeys([1, 2, 3])


def test_keys_differ_from_the_first_different_image() -> None:
    assert common(prompt(1, A, 2), prompt(1, A, 3)) == 4
    assert common(prompt(1, A, 2), prompt(1, B, 2)) == 1
    assert common(prompt(1, A, 2, B, 4), prompt(1, A, 2, C, 4)) == 5
    assert common(prompt(1, A, 2, B, 4), prompt(1, B, 2, A, 4)) == 1
    assert common(prompt(1, A, 2), prompt(1, A, 2, B, 4)) == 5, "a chat's next image"


def test_positions_of_one_image_have_different_keys() -> None:
    assert len(set(held(prompt(A)))) == 3


def test_same_pixels_with_other_geometry_have_other_keys() -> None:
    wide = A.reshape(3, 2, 8)
    assert common(prompt(1, A), prompt(1, wide)) == 1
    mask = mx.ones((1, 1, 4, 4))
    assert common(prompt(1, A, pixel_mask=mask), prompt(1, A, pixel_mask=mask * 0)) == 1
    assert common(prompt(1, A, sizes=[[4, 4]]), prompt(1, A, sizes=[[4, 3]])) == 1


def test_per_image_mask_changes_only_the_keys_of_its_image() -> None:
    mask = mx.ones((1, 2, 4, 4))
    other = mx.concatenate([mask[:, :1], mask[:, 1:] * 0], axis=1)
    assert common(prompt(1, A, 2, B, pixel_mask=mask), prompt(1, A, 2, B, pixel_mask=other)) == 5


def test_ambiguous_image_positions_match_only_identical_images() -> None:
    one, other = prompt(1, A, B, 2), prompt(1, A, C, 2)
    assert common(one, other) == 0, "two images side by side are one run of image tokens"
    assert common(one, prompt(1, A, B, 3)) == 7
    packed = {"input_ids": mx.array([[1, 9, 9, 2]]), "pixel_values": mx.ones((16, 12))}
    found = places(packed, IMAGE)
    assert found is not None
    assert found.mark is not None
    assert found.followed_by([5]) == [*found.keys, (found.mark, 5)]
    assert found.keys[0] == (found.mark, 1)


def packed(tokens: list[int], *sizes: tuple[int, int]) -> dict[str, Any]:
    count = sum(h * w for h, w in sizes)
    pixels = mx.arange(count * 12).reshape(count, 12).astype(mx.float32)
    grid = mx.array([[1, h, w] for h, w in sizes])
    return {"input_ids": mx.array([tokens]), "pixel_values": pixels, "image_grid_thw": grid}


def test_packed_images_of_different_sizes_have_keys_of_their_own() -> None:
    one = packed([1, IMAGE, 2], (2, 2))
    two = packed([1, IMAGE, 2, IMAGE, IMAGE, 3], (2, 2), (2, 4))
    assert common(one, two) == 3
    found = places(two, IMAGE)
    assert found is not None
    assert found.mark is None
    assert len(found.fingerprints) == 2


def test_packed_images_whose_tokens_are_not_in_proportion_match_as_a_whole_only() -> None:
    found = places(packed([1, IMAGE, IMAGE, 2, IMAGE, 3], (2, 2), (2, 4)), IMAGE)
    assert found is not None
    assert found.mark is not None


def test_inputs_without_a_fingerprint_have_no_prompt_keys() -> None:
    assert places(prompt(1, A), None) is None
    assert places({**prompt(1, 2), "pixel_values": mx.ones((1, 3, 4, 4))}, IMAGE) is None
    assert places(prompt(1, A, more=object()), IMAGE) is None
    assert places(prompt(1, more=object()), IMAGE) is None
