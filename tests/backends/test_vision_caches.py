"""The caches of a vision model: limits, supported models, and complete entries only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.prompt_cache import LEAST_BYTES, CachedPrefix, reuse_limit
from mlx_magic.backends.vision.caches import VisionCaches

mx = pytest.importorskip("mlx.core")

TOKENS = list(range(40))


def model(**language: Any) -> Any:
    return SimpleNamespace(
        language_model=SimpleNamespace(**language), config=SimpleNamespace(image_token_id=9)
    )


def rows(count: int) -> list[tuple[Any, Any]]:
    return [(mx.ones((1, 1, count, 4)), mx.ones((1, 1, count, 4)))]


def new_caches() -> list[Any]:
    from mlx_lm.models.cache import KVCache

    return [KVCache()]


def inputs(tokens: list[int]) -> dict[str, Any]:
    return {"input_ids": mx.array([tokens])}


def test_prompt_and_answer_are_reused_by_the_next_prompt() -> None:
    recall = VisionCaches(model(), 0, kind="plain")
    recall.prompt_cache.keep(recall.start(inputs(TOKENS), None), [50, 51], rows(42))
    start = recall.start(inputs([*TOKENS, 50, 52, 53]), None)
    assert start.count == 41
    [cache] = start.caches(new_caches) or [None]
    assert cache is not None
    assert (cache.offset, cache.keys.shape) == (41, (1, 1, 41, 4))
    assert recall.counts.prefix_hits == 1
    assert recall.forget() == 42 * 2 * 4 * 4
    assert recall.counts.nbytes == 0


@pytest.mark.parametrize(("held", "kept"), [(40, 40), (41, 41), (43, 42)])
def test_only_tokens_whose_keys_and_values_are_held_are_kept(held: int, kept: int) -> None:
    recall = VisionCaches(model(), 0, kind="plain")
    recall.prompt_cache.keep(recall.start(inputs(TOKENS), None), [50, 51], rows(held))
    assert recall.counts.prefix_bytes == kept * 2 * 4 * 4
    assert recall.start(inputs([*TOKENS, 50, 51, 52]), None).count == kept


@pytest.mark.parametrize("count", [39, 0])
def test_caches_that_do_not_cover_the_prompt_are_not_kept(count: int) -> None:
    recall = VisionCaches(model(), 0, kind="plain")
    recall.prompt_cache.keep(recall.start(inputs(TOKENS), None), [50, 51], rows(count))
    recall.prompt_cache.keep(recall.start(inputs(TOKENS), None), [50, 51], None)
    recall.prompt_cache.keep(CachedPrefix(), [50, 51], rows(2))
    assert recall.counts.prefix_bytes == 0


def test_prompts_of_a_model_without_batching_are_not_kept() -> None:
    recall = VisionCaches(model(), 0, kind=None)
    for _ in range(2):
        start = recall.start(inputs(TOKENS), None)
        assert (start.count, start.prompt_keys, start.caches(new_caches)) == (0, None, None)
        recall.prompt_cache.keep(start, [], rows(40))
    assert recall.counts.prefix_bytes == recall.counts.prefix_misses == 0


@pytest.mark.parametrize("name", ["_rope_deltas", "_position_ids"])
def test_model_with_positions_of_its_own_follows_a_prefix_only_with_positions(name: str) -> None:
    keeps = VisionCaches(model(**{name: None}), 0, kind="plain")
    assert not keeps.may_follow_prefix([])
    assert keeps.may_follow_prefix(["position_ids", "rope_deltas"])
    plain = VisionCaches(model(), 0, kind="plain")
    assert plain.may_follow_prefix([])
    for either in (keeps, plain):
        assert not either.may_follow_prefix(["position_ids", "attention_mask_4d"])


def test_image_encoder_runs_only_if_an_image_follows_the_cached_prefix() -> None:
    recall = VisionCaches(model(), 0, kind="plain")
    assert not recall.has_images(inputs([1, 9, 2]), 0), "there are no pixels"
    shown = {**inputs([1, 9, 2]), "pixel_values": mx.ones((1, 3, 4, 4))}
    assert [recall.has_images(shown, at) for at in range(3)] == [True, True, False]


def test_cache_limit_depends_on_model_and_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "total_memory", lambda: 16 * 2**30)
    assert reuse_limit(10**6) == LEAST_BYTES
    assert reuse_limit(2 * 10**9) == 10**9
    assert reuse_limit(10**12) == 2 * 2**30
    assert VisionCaches(model(), 2 * 10**9, kind="plain").counts.limit_bytes == 10**9
    monkeypatch.setattr(platform, "total_memory", lambda: 0)
    assert reuse_limit(10**12) == LEAST_BYTES, "how much there is, is not known"


def test_reuse_counts_of_several_models_add_up() -> None:
    one, other = CacheStats(1, 2, 3, 4, 5, 6, 7, 8), CacheStats(10, 20, 30, 40, 50, 60, 70, 80)
    assert CacheStats.total([one, other]) == CacheStats(11, 22, 33, 44, 55, 66, 77, 88)
    assert CacheStats.total([]) == CacheStats()
    assert one.nbytes == 3 + 4 + 7
