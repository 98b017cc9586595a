"""Keys of a request's images: per image, for all of them, and when pixels are released."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlx_magic.backends.prefix_cache.prompt_keys import ImageKeys

pytestmark = pytest.mark.usefixtures("mlx")


def pixels(*seeds: int, shape: tuple[int, ...] = (3, 8, 8)) -> Any:
    rows = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds]
    return np.stack(rows)


def keys_of(**inputs: Any) -> ImageKeys:
    import mlx.core as mx

    arrays = {k: mx.array(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    found = ImageKeys.of({"input_ids": mx.array([[1, 2]]), "mask": mx.array([[1, 1]]), **arrays})
    assert found is not None
    return found


def test_prompt_without_images_has_no_image_keys() -> None:
    import mlx.core as mx

    assert ImageKeys.of({"input_ids": mx.array([[1]]), "mask": mx.array([[1]])}) is None


@pytest.mark.parametrize("lead", [False, True])
def test_image_has_the_same_key_alone_and_beside_others(lead: bool) -> None:
    def of(*seeds: int) -> ImageKeys:
        held = pixels(*seeds)
        return keys_of(pixel_values=held[None] if lead else held)

    one, both = of(1), of(2, 1)
    assert len(one.rows) == 1
    assert both.rows == [of(2).rows[0], one.rows[0]]
    assert one.whole != both.whole


def test_packed_image_has_the_same_key_alone_and_beside_others() -> None:
    def of(*images: tuple[int, int, int]) -> ImageKeys:
        patches = [pixels(*(seed + n for n in range(h * w)), shape=(12,)) for seed, h, w in images]
        grid = np.array([[1, h, w] for _, h, w in images])
        return keys_of(pixel_values=np.concatenate(patches), image_grid_thw=grid)

    one, both = of((1, 2, 4)), of((50, 2, 2), (1, 2, 4))
    assert (one.patches, both.patches) == ([8], [4, 8])
    assert both.rows == [of((50, 2, 2)).rows[0], one.rows[0]]
    assert one.rows[0] != of((1, 4, 2)).rows[0], "the same patches in another order"
    assert one.whole != both.whole


@pytest.mark.parametrize("grid", [[[1, 1, 2]], [[1, 1, 1], [0, 1, 1]], [1, 1, 1], []])
def test_packed_images_that_cannot_be_split_have_one_key(grid: Any) -> None:
    packed = keys_of(pixel_values=pixels(1, shape=(12,)), image_grid_thw=np.array(grid))
    assert (packed.rows, packed.patches) == ([], [])
    again = keys_of(pixel_values=pixels(1, shape=(12,)), image_grid_thw=np.array(grid))
    other = keys_of(pixel_values=pixels(2, shape=(12,)), image_grid_thw=np.array(grid))
    assert packed.whole == again.whole != other.whole


def test_unknown_pixel_types_have_no_key() -> None:
    assert ImageKeys.of({"pixel_values": object()}) is None


def test_settle_releases_the_pixels_of_looked_up_keys() -> None:
    held = keys_of(pixel_values=pixels(1, 2))
    hash(held.rows[0])
    held.settle()
    assert held.rows[0]._parts is None
    assert held.whole._parts is not None, "it was not needed: it goes with the request"
