"""Rows extracted from the caches of a batch: without the padding."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.radix_tree import cut_out

pytestmark = pytest.mark.model

LAYERS = 3


@pytest.fixture(autouse=True)
def prepare_platform() -> None:
    platform.prepare()


def numbers(layer: int, row: int, tokens: int) -> list[list[float]]:
    """Return two numbers for each token of a row."""
    return [[float(1000 * layer + 100 * row + token), float(token)] for token in range(tokens)]


def filled(layer: int, rows: dict[int, int]) -> Any:
    """Return a cache of prompts, padded on the left; `rows` are their names and lengths."""
    import mlx.core as mx
    from mlx_vlm.models.cache import BatchKVCache

    longest = max(rows.values())
    cache = BatchKVCache([longest - length for length in rows.values()])
    keys = mx.array(
        [
            [[[-1.0, -1.0]] * (longest - length) + numbers(layer, row, length)]
            for row, length in rows.items()
        ]
    )
    cache.update_and_fetch(keys, -keys)
    return cache


def test_extracted_row_has_no_padding() -> None:
    caches = []
    for layer in range(LAYERS):
        cache = filled(layer, {0: 9, 1: 6, 2: 4})
        cache.extend(filled(layer, {3: 12, 4: 14}))
        cache.filter([1, 2, 3, 4])
        caches.append(cache)
    lengths = {0: (1, 6), 1: (2, 4), 3: (4, 14)}
    wanted = [(0, 0), (1, 2), (3, 5)]
    for (at, start), rows in zip(wanted, cut_out(caches, wanted), strict=True):
        row, length = lengths[at]
        assert len(rows) == LAYERS
        for layer, (keys, values) in enumerate(rows):
            assert keys.tolist() == [[numbers(layer, row, length)[start:]]]
            assert (values == -keys).all()


def test_cache_of_a_single_answer_has_no_padding() -> None:
    import mlx.core as mx
    from mlx_vlm.models.cache import KVCache

    cache = KVCache()
    keys = mx.array([[numbers(0, 0, 9)]])
    cache.update_and_fetch(keys, -keys)
    assert cut_out([cache], [(0, 2)])[0][0][0].tolist() == [[numbers(0, 0, 9)[2:]]]
