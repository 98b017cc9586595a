"""Prefix cache of one text model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.prefix_cache.radix_tree import PrefixCache, Rows
from mlx_magic.backends.vision.caches import reuse_limit


class PromptCache:
    """Keys and values of prompt prefixes, for one model.

    Only for models whose caches are all plain: caches of a sliding window or of a recurrence
    cannot be cut at any position. Other models read each prompt from its start.

    Parameters
    ----------
    nbytes : int
        Bytes of the model's weights.
    plain : bool
        Whether all caches of the model are plain ones.
    """

    def __init__(self, nbytes: int, *, plain: bool) -> None:
        self._prefixes = PrefixCache(reuse_limit(nbytes)) if plain else None

    @property
    def counts(self) -> CacheStats:
        """Counts and bytes; safe from any thread."""
        held = self._prefixes
        if held is None:
            return CacheStats()
        return CacheStats(
            prefix_hits=held.hits,
            prefix_misses=held.misses,
            prefix_bytes=held.nbytes,
            limit_bytes=held.limit,
        )

    def start(self, tokens: Sequence[int]) -> tuple[int, list[Any] | None]:
        """Look up the cached prefix of a prompt.

        Returns
        -------
        tuple of int and list or None
            Number of cached tokens, and KV caches filled with them, one per layer.
        """
        count, rows = (0, []) if self._prefixes is None else self._prefixes.find(tokens)
        return count, _caches(rows, count) if count else None

    def keep(self, tokens: Sequence[int], start: int, rows: Rows | None) -> None:
        """Add the prompt and the answer of a finished request.

        Parameters
        ----------
        tokens : sequence of int
            The prompt and its answer.
        start : int
            Length of the prefix that was cached when the request started.
        rows : list or None
            Keys and values from `start` on; those beyond the tokens are cut off.
        """
        if self._prefixes is None or not rows:
            return
        length = len(tokens) - start
        if rows[0][0].shape[2] >= length:
            cut = [(keys[:, :, :length], values[:, :, :length]) for keys, values in rows]
            self._prefixes.keep(tokens, cut, start)

    def reset_counts(self) -> None:
        """Reset the counts of hits and misses."""
        if self._prefixes is not None:
            self._prefixes.hits = self._prefixes.misses = 0

    def forget(self) -> int:
        """Clear the cache; return the bytes that it held."""
        size = self.counts.nbytes
        if self._prefixes is not None:
            self._prefixes.clear()
        return size


def _caches(rows: Rows, count: int) -> list[Any]:
    from mlx_lm.models.cache import KVCache

    made = []
    for keys, values in rows:
        cache = KVCache()
        cache.keys, cache.values, cache.offset = keys, values, count
        made.append(cache)
    return made
