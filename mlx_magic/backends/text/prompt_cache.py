"""What one text model has read before, and where a prompt may start therefore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_magic.backends.cache_stats import Reuse
from mlx_magic.backends.prefix_cache.radix_tree import PrefixCache, Rows
from mlx_magic.backends.vision.caches import reuse_limit


class PromptCache:
    """Beginnings of prompts, for one model.

    Only for models all of whose caches are plain ones: those of a sliding window or of a
    recurrence cannot be cut at any place. The others read each prompt from its start.

    Parameters
    ----------
    nbytes : int
        Bytes of the model's weights.
    plain : bool
        Whether all its caches are plain ones.
    """

    def __init__(self, nbytes: int, *, plain: bool) -> None:
        self._prefixes = PrefixCache(reuse_limit(nbytes)) if plain else None

    @property
    def counts(self) -> Reuse:
        """Counts and bytes; safe from any thread."""
        held = self._prefixes
        if held is None:
            return Reuse()
        return Reuse(
            prefix_hits=held.hits,
            prefix_misses=held.misses,
            prefix_bytes=held.nbytes,
            limit_bytes=held.limit,
        )

    def start(self, tokens: Sequence[int]) -> tuple[int, list[Any] | None]:
        """Find out how much of a prompt was read before.

        Returns
        -------
        tuple of int and list or None
            Tokens that need not be read, and caches with these in them, one a layer.
        """
        count, rows = (0, []) if self._prefixes is None else self._prefixes.find(tokens)
        return count, _caches(rows, count) if count else None

    def keep(self, tokens: Sequence[int], start: int, rows: Rows | None) -> None:
        """Keep what was read and written for an answer that came to its end.

        Parameters
        ----------
        tokens : sequence of int
            The prompt and its answer.
        start : int
            How many of them were known.
        rows : list or None
            Keys and values from there on; those that are ahead of the tokens are left out.
        """
        if self._prefixes is None or not rows:
            return
        length = len(tokens) - start
        if rows[0][0].shape[2] >= length:
            cut = [(keys[:, :, :length], values[:, :, :length]) for keys, values in rows]
            self._prefixes.keep(tokens, cut, start)

    def reset_counts(self) -> None:
        """Begin the counts of hits and misses anew."""
        if self._prefixes is not None:
            self._prefixes.hits = self._prefixes.misses = 0

    def forget(self) -> int:
        """Let go of everything; return the bytes that were kept."""
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
