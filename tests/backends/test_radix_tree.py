"""The prefix cache: exact matches, never modified, bounded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_magic.backends.prefix_cache.radix_tree import LEAST, PrefixCache, Rows

mx = pytest.importorskip("mlx.core")

LAYERS, HEADS, WIDTH = 2, 2, 3
EACH = LAYERS * 2 * HEADS * WIDTH * 4
"""Bytes of a token."""

PLENTY = 10_000


def fake_caches(places: Sequence[int], start: int = 0) -> Rows:
    """Return keys and values that identify the token at each position and those before it."""
    sums = np.cumsum(np.array(places, dtype=np.float32) + 1) * np.arange(1, len(places) + 1)
    shape = (1, HEADS, len(places), WIDTH)
    each = np.broadcast_to(sums.astype(np.float32)[None, None, :, None], shape)
    return [
        (mx.array(each[:, :, start:] + layer), mx.array(each[:, :, start:] - layer))
        for layer in range(LAYERS)
    ]


def assert_same(rows: Rows, expected: Rows) -> None:
    for (keys, values), (wanted_keys, wanted_values) in zip(rows, expected, strict=True):
        assert np.array_equal(keys, wanted_keys)
        assert np.array_equal(values, wanted_values)


def repeated_parts(*parts: int) -> list[int]:
    """Return eight tokens for each part."""
    return [8 * part + at for part in parts for at in range(8)]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def test_longest_common_prefix_is_found() -> None:
    prefixes = PrefixCache(10**6)
    prefixes.keep(repeated_parts(1, 2, 3), fake_caches(repeated_parts(1, 2, 3)), 0)
    count, rows = prefixes.find(repeated_parts(1, 2, 4))
    assert count == 16
    assert_same(rows, fake_caches(repeated_parts(1, 2)))
    count, rows = prefixes.find(repeated_parts(1, 2, 3, 4))
    assert count == 24
    assert_same(rows, fake_caches(repeated_parts(1, 2, 3)))
    assert prefixes.find(repeated_parts(2, 2, 3))[0] == 0
    assert (prefixes.hits, prefixes.misses) == (2, 1)


def test_at_least_one_token_is_left_to_prefill() -> None:
    prefixes = PrefixCache(10**6)
    prefixes.keep(repeated_parts(1, 2, 3), fake_caches(repeated_parts(1, 2, 3)), 0)
    assert prefixes.find(repeated_parts(1, 2, 3))[0] == 23
    assert prefixes.find([1])[0] == 0
    assert prefixes.find([])[0] == 0


def test_prefix_of_a_few_tokens_is_not_cached() -> None:
    prefixes = PrefixCache(10**6)
    prefixes.keep(repeated_parts(1, 2, 3), fake_caches(repeated_parts(1, 2, 3)), 0)
    assert prefixes.find([*repeated_parts(1, 2)[: LEAST - 1], 0, 0])[0] == 0
    assert prefixes.find([*repeated_parts(1, 2)[:LEAST], 0, 0])[0] == LEAST


def test_prompts_share_their_common_prefix() -> None:
    prefixes = PrefixCache(10**6)
    for last in range(10, 20):
        prompt = repeated_parts(1, 2, 3, last)
        count, _ = prefixes.find(prompt)
        prefixes.keep(prompt, fake_caches(prompt, count), count)
    assert prefixes.nbytes == EACH * 8 * (3 + 10)


def test_cached_arrays_are_never_modified() -> None:
    cache_module = pytest.importorskip("mlx_vlm.models.cache")
    prefixes = PrefixCache(10**6)
    prompt = repeated_parts(1, 2, 3)
    prefixes.keep(prompt, fake_caches(prompt), 0)
    for step, end in itertools.product((1, 300), (len(prompt), 20)):
        count, rows = prefixes.find([*prompt[:end], 99])
        for keys, values in rows:
            cache = cache_module.KVCache()
            cache.keys, cache.values, cache.offset = keys, values, count
            new = mx.full((1, HEADS, step, WIDTH), -1.0)
            mx.eval(cache.update_and_fetch(new, new))
            # A cache with spare room writes into its arrays in place.
            cache.keys[...] = -2.0
            keys[..., :3, :] = -3.0
            values[...] = -4.0
            mx.eval(cache.keys, keys, values)
    assert_same(prefixes.find([*prompt, 99])[1], fake_caches(prompt))


def test_caller_can_modify_inserted_arrays_afterwards() -> None:
    prefixes = PrefixCache(10**6)
    rows = fake_caches(repeated_parts(1, 2))
    prefixes.keep(repeated_parts(1, 2), rows, 0)
    for keys, values in rows:
        keys[...] = 0.0
        values[...] = 0.0
    assert_same(prefixes.find([*repeated_parts(1, 2), 1])[1], fake_caches(repeated_parts(1, 2)))


def test_least_recently_used_prompt_is_evicted_first() -> None:
    prefixes = PrefixCache(EACH * 8 * 4)
    for first in (1, 2):
        prefixes.keep(repeated_parts(first, 5), fake_caches(repeated_parts(first, 5)), 0)
    assert prefixes.find(repeated_parts(1, 5, 0))[0] == 16
    prefixes.keep(repeated_parts(3, 5), fake_caches(repeated_parts(3, 5)), 0)
    assert [prefixes.find(repeated_parts(first, 5, 0))[0] for first in (1, 2, 3)] == [16, 0, 16]
    assert prefixes.nbytes == EACH * 8 * 4


def test_prefix_of_a_too_long_prompt_is_kept() -> None:
    prefixes = PrefixCache(EACH * 20 + 1)
    prefixes.keep(repeated_parts(1, 2, 3), fake_caches(repeated_parts(1, 2, 3)), 0)
    count, rows = prefixes.find(repeated_parts(1, 2, 3))
    assert count == 20
    assert_same(rows, fake_caches(repeated_parts(1, 2, 3)[:20]))
    nothing = PrefixCache(0)
    nothing.keep(repeated_parts(1, 2, 3), fake_caches(repeated_parts(1, 2, 3)), 0)
    assert (nothing.find(repeated_parts(1, 2, 3))[0], nothing.nbytes) == (0, 0)


def test_suffix_of_an_evicted_prefix_is_not_kept() -> None:
    prefixes = PrefixCache(10**6)
    prompt = repeated_parts(1, 2, 3)
    prefixes.keep(prompt[:16], fake_caches(prompt[:16]), 0)
    count, _ = prefixes.find(prompt)
    prefixes.clear()
    prefixes.keep(prompt, fake_caches(prompt, count), count)
    assert prefixes.nbytes == 0
    assert prefixes.find(prompt)[0] == 0


def test_trimmed_cache_does_not_keep_the_full_array_alive() -> None:
    prefixes = PrefixCache(10**9)
    prompt = list(range(4096))
    mx.clear_cache()
    before = mx.get_active_memory()
    rows = [(k[:, :, :64], v[:, :, :64]) for k, v in fake_caches(prompt)]
    prefixes.keep(prompt[:64], rows, 0)
    del rows
    assert mx.get_active_memory() - before < EACH * 1024


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=12),
    st.sampled_from([0, 5, 20, 40, 80, PLENTY]),
)
def test_any_found_prefix_equals_the_prefilled_one(prompts: list[list[int]], room: int) -> None:
    prefixes = PrefixCache(room * EACH)
    kept: list[list[int]] = []
    for parts in prompts:
        prompt = [*repeated_parts(*parts), 1000]
        count, rows = prefixes.find(prompt)
        longest = max((common(prompt[:-1], other) for other in kept), default=0)
        assert count <= longest
        assert count == 0 or count >= LEAST
        if room == PLENTY:
            assert count == (longest if longest >= LEAST else 0)
        if count:
            assert_same(rows, fake_caches(prompt[:count]))
        prefixes.keep(prompt, fake_caches(prompt, count), count)
        kept.append(prompt)
        assert prefixes.nbytes <= room * EACH
        assert prefixes.nbytes % EACH == 0
