"""Prefix cache of one model: keys and values of prompts that were read before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.prompt_keys import PromptKeys
from mlx_magic.backends.prefix_cache.radix_tree import PrefixCache, Rows

SHARE = 1 / 2
"""Maximum of a model's caches, as a share of the bytes of its weights."""

LEAST_BYTES = 64 * 2**20
"""Maximum of the caches of a small model."""

SHARE_OF_MEMORY = 1 / 8
"""Maximum of one model's caches, as a share of the machine's memory."""


def reuse_limit(nbytes: int) -> int:
    """Return the maximum bytes of a model's caches.

    Half of the model's weights, at least 64 MiB, at most an eighth of the machine's memory.

    Parameters
    ----------
    nbytes : int
        Bytes of the weights.
    """
    memory = platform.total_memory()
    most = int(memory * SHARE_OF_MEMORY) if memory else LEAST_BYTES
    return min(max(int(nbytes * SHARE), LEAST_BYTES), max(most, 1))


@dataclass(slots=True)
class CachedPrefix:
    """The cached prefix of one prompt, after which prefill starts.

    Attributes
    ----------
    count : int
        Number of cached tokens.
    rows : list
        Keys and values of the cached tokens.
    prompt_keys : PromptKeys or None
        Keys of the prompt's tokens; None if the prompt must not be cached.
    """

    count: int = 0
    rows: Rows = field(default_factory=list)
    prompt_keys: PromptKeys | None = None

    def without_cache(self) -> CachedPrefix:
        """Start at the beginning of the prompt, and do not cache it."""
        self.count, self.rows, self.prompt_keys = 0, [], None
        return self

    def caches(self, new_caches: Callable[[], list[Any]]) -> list[Any] | None:
        """Return KV caches filled with the prefix, one per layer; None if there is none.

        Parameters
        ----------
        new_caches : callable
            Returns empty plain caches.
        """
        if not self.count:
            return None
        made = new_caches()
        for cache, (keys, values) in zip(made, self.rows, strict=True):
            cache.keys, cache.values, cache.offset = keys, values, self.count
        self.rows = []
        return made


class PromptCache:
    """Keys and values of prompt prefixes, for a model whose caches are all plain.

    Caches of a sliding window or of a recurrence cannot be cut at any position: such a model
    reads each prompt from its start.

    Parameters
    ----------
    limit : int
        Maximum bytes.
    plain : bool
        Whether the model's prompts may be cached.
    may_keep : callable
        Called before a prompt is cached; if it returns False, no prompt is cached any more.
    """

    def __init__(
        self, limit: int, *, plain: bool, may_keep: Callable[[], bool] = lambda: True
    ) -> None:
        self._prefixes = PrefixCache(limit)
        self._may_keep = may_keep
        self._plain = plain

    @property
    def limit(self) -> int:
        """Maximum bytes; 0 if no prompt is ever cached."""
        return self._prefixes.limit if self._plain else 0

    @property
    def hits(self) -> int:
        """Prompts with a cached prefix."""
        return self._prefixes.hits

    @property
    def misses(self) -> int:
        """Prompts that were read from the start, of a model whose prompts are cached."""
        return self._prefixes.misses

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._prefixes.nbytes

    def start(self, prompt_keys: Callable[[], PromptKeys | None]) -> CachedPrefix:
        """Look a prompt up.

        Parameters
        ----------
        prompt_keys : callable
            Returns the keys of the prompt, or None if it must not be cached. Not called for a
            model whose prompts are never cached.
        """
        keys = prompt_keys() if self._plain else None
        if keys is None:
            return CachedPrefix()
        count, rows = self._prefixes.find(keys.keys)
        return CachedPrefix(count, rows, keys)

    def keep(self, start: CachedPrefix, answer: list[int], rows: Rows | None) -> None:
        """Add the prompt and the answer of a finished request.

        Not of a cancelled or failed one.

        Parameters
        ----------
        start : CachedPrefix
        answer : list of int
            Tokens of the answer.
        rows : list or None
            Keys and values after the cached prefix: those of the whole prompt, and of more or
            fewer tokens than `answer` has. What both have is cached.
        """
        if start.prompt_keys is None or not rows or not self._plain:
            return
        if not self._may_keep():
            self._plain = False
            self.clear()
            return
        prompt = len(start.prompt_keys.keys) - start.count
        both = min(rows[0][0].shape[2] - prompt, len(answer))
        if both < 0:
            return
        end = prompt + both
        cut = [(keys[:, :, :end], values[:, :, :end]) for keys, values in rows]
        for fingerprint in start.prompt_keys.fingerprints:
            fingerprint.settle()
        self._prefixes.keep(start.prompt_keys.followed_by(answer[:both]), cut, start.count)

    def reset_counts(self) -> None:
        """Reset the counts of hits and misses."""
        self._prefixes.hits = self._prefixes.misses = 0

    def clear(self) -> None:
        """Drop all prompts."""
        self._prefixes.clear()
