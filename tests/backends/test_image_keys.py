"""Keys of a request's images: per image, for all of them, and when pixels are released."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.image_keys import ImageKeys


@pytest.fixture(scope="module", autouse=True)
def mlx() -> None:
    platform.start()


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


def test_packed_pixels_have_one_key() -> None:
    packed = keys_of(pixel_values=pixels(1, shape=(12,)), image_grid_thw=np.array([[1, 1, 1]]))
    assert packed.rows == []
    again = keys_of(pixel_values=pixels(1, shape=(12,)), image_grid_thw=np.array([[1, 1, 1]]))
    other = keys_of(pixel_values=pixels(1, shape=(12,)), image_grid_thw=np.array([[1, 1, 2]]))
    assert packed.whole == again.whole != other.whole


def test_unknown_pixel_types_have_no_key() -> None:
    assert ImageKeys.of({"pixel_values": object()}) is None


def test_settle_releases_the_pixels_of_looked_up_keys() -> None:
    held = keys_of(pixel_values=pixels(1, 2))
    hash(held.rows[0])
    held.settle()
    assert held.rows[0]._parts is None
    assert held.whole._parts is not None, "it was not needed: it goes with the request"
