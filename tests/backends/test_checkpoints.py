"""States of caches that cannot be cut: what is held, how light, and what goes first."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.prompt_cache import CheckpointCache

TOKENS = 20
WINDOW = 8


@pytest.fixture(scope="module", autouse=True)
def mlx() -> None:
    platform.start()


def caches(tokens: int = TOKENS) -> list[Any]:
    """Return the caches of a window and of all tokens, filled in two calls."""
    import mlx.core as mx
    from mlx_vlm.models.cache import KVCache, RotatingKVCache

    made = [RotatingKVCache(WINDOW), KVCache()]
    for begin, end in ((0, tokens - 3), (tokens - 3, tokens)):
        numbers = mx.arange(begin, end, dtype=mx.float32)[None, None, :, None]
        for cache in made:
            cache.update_and_fetch(mx.repeat(numbers, 4, -1), mx.repeat(numbers, 4, -1))
    mx.eval(kv_cache.states(made))
    return made


def nbytes(tokens: int) -> int:
    return 2 * tokens * 4 * 4


def after(cache: Any, token: float) -> list[float]:
    """Return the tokens that a cache attends to after one more."""
    import mlx.core as mx

    more = mx.full((1, 1, 1, 4), token)
    keys, _ = cache.update_and_fetch(more, more)
    return sorted(keys[0, 0, :, 0].tolist())


def test_trimmed_caches_hold_the_window_and_the_tokens_only() -> None:
    made = kv_cache.trimmed(caches())
    assert made is not None
    assert kv_cache.caches_nbytes(made) == nbytes(WINDOW) + nbytes(TOKENS)
    for light, own in zip(made, caches(), strict=True):
        for token in (100.0, 101.0):
            assert after(light, token) == after(own, token)
    assert kv_cache.trimmed(kv_cache.trimmed(caches()) or []) is None, "nothing to trim"


def test_state_is_held_apart_from_the_caches_that_go_on() -> None:
    held = CheckpointCache(10**6, kv_cache.trimmed)
    own = caches()
    held.keep(range(TOKENS), own)
    for cache in own:
        after(cache, 77.0)
    count, found = held.find(range(TOKENS + 1))
    assert count == TOKENS
    assert 77.0 not in after(found[1], 5.0)


def test_states_are_trimmed_once_an_answer_has_ended() -> None:
    held = CheckpointCache(10**6, kv_cache.trimmed)
    held.keep(range(TOKENS), caches())
    before = held.nbytes
    held.keep(range(TOKENS + 2), caches(TOKENS + 2), at_end=True)
    light = 2 * nbytes(WINDOW) + nbytes(TOKENS) + nbytes(TOKENS + 2)
    assert held.nbytes == light
    assert before > light / 2


def test_unused_ends_of_answers_go_first_and_the_newest_state_stays() -> None:
    one = nbytes(WINDOW) + nbytes(TOKENS)
    held = CheckpointCache(3 * one, kv_cache.trimmed)

    def keys(name: str) -> list[tuple[str, int]]:
        return [(name, at) for at in range(TOKENS)]

    def known(name: str) -> bool:
        return held.find([*keys(name), "more"])[0] > 0

    light = kv_cache.trimmed(caches()) or []
    held.keep(keys("image a"), light)
    held.keep(keys("end a"), light, at_end=True)
    held.keep(keys("image b"), light)
    held.keep(keys("image c"), light)
    assert [known(name) for name in ("image a", "image b", "image c")] == [True] * 3
    assert not known("end a")
    held.keep(keys("end c"), light, at_end=True)
    assert known("end c"), "the chat may go on"
    assert not known("image a"), "the least recently used one went"
