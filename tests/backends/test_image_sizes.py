"""Image sizes inferred from processor outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlx_magic.backends.vision.inputs import seen_sizes


@pytest.mark.parametrize(
    ("inputs", "count", "expected"),
    [
        ({"pixel_values": np.zeros((2, 3, 64, 96))}, 2, ("96 x 64", "96 x 64")),
        ({"pixel_values": np.zeros((1, 1, 3, 128, 128))}, 1, ("128 x 128",)),
        ({"pixel_values": np.zeros((1, 5, 3, 384, 384))}, 1, ("5 tiles of 384 x 384",)),
        ({"pixel_values": np.zeros((1, 224, 200, 3))}, 1, ("200 x 224",)),
        ({"pixel_values": [np.zeros((3, 10, 20)), np.zeros((3, 30, 40))]}, 2,
         ("20 x 10", "40 x 30")),
        ({"pixel_values": np.zeros((96, 1176)), "image_grid_thw": np.array([[1, 8, 12]])}, 1,
         ("168 x 112",)),
        ({"pixel_values": np.zeros((1, 5, 3, 9, 9))}, 2, ()),
        ({"pixel_values": np.zeros((96, 1176))}, 1, ()),
        ({}, 1, ()),
    ],
)  # fmt: skip
def test_image_sizes_come_from_array_shapes(
    inputs: dict[str, Any], count: int, expected: tuple[str, ...]
) -> None:
    assert seen_sizes(inputs, count, patch=14) == expected
