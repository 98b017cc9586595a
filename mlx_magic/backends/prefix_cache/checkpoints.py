"""Whole states of a model's caches after certain prompts, for caches that cannot be cut."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from mlx_magic.backends.prefix_cache.radix_tree import LEAST


class CheckpointCache:
    """States of caches by the prompt that they hold, the least recently used dropped first.

    A sliding window or a recurrence forgets: its state fits the whole prompt only, not a part of
    it. So a state is found for a prompt that begins with all tokens of an earlier one.

    Parameters
    ----------
    limit : int
        Maximum bytes.

    Attributes
    ----------
    hits, misses : int
        Prompts with and without a state.
    nbytes : int
        Bytes held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = self.nbytes = 0
        self._held: OrderedDict[tuple[Hashable, ...], tuple[list[Any], int]] = OrderedDict()

    def find(self, prompt_keys: Sequence[Hashable]) -> tuple[int, list[Any]]:
        """Return the length of the longest held beginning of a prompt, and its caches.

        The last token is never taken from a state. The caches are the caller's own.
        """
        for length in sorted({len(keys) for keys in self._held}, reverse=True):
            if not LEAST <= length < len(prompt_keys):
                continue
            keys = tuple(prompt_keys[:length])
            if keys in self._held:
                self._held.move_to_end(keys)
                self.hits += 1
                return length, copied(self._held[keys][0])
        self.misses += 1
        return 0, []

    def keep(self, prompt_keys: Sequence[Hashable], caches: list[Any]) -> None:
        """Hold the state of caches that have read a prompt."""
        import mlx.core as mx

        keys = tuple(prompt_keys)
        if keys in self._held:
            self._held.move_to_end(keys)
            return
        made = copied(caches)
        arrays = list(_arrays(made))
        size = sum(int(array.nbytes) for array in arrays)
        if len(keys) < LEAST or size > self.limit:
            return
        mx.eval(arrays)
        self._held[keys] = (made, size)
        self.nbytes += size
        while self.nbytes > self.limit:
            _, (_, dropped) = self._held.popitem(last=False)
            self.nbytes -= dropped

    def clear(self) -> None:
        """Drop all states."""
        self._held.clear()
        self.nbytes = 0


def copied(caches: list[Any]) -> list[Any]:
    """Return caches that share the arrays, but not their later changes."""
    return [_copied(cache) for cache in caches]


def _copied(value: Any) -> Any:
    import mlx.core as mx

    if isinstance(value, mx.array):
        # A new handle: an assignment to a slice changes the handle that it is made to.
        return mx.array(value)
    if isinstance(value, list | tuple):
        return type(value)(_copied(each) for each in value)
    if hasattr(value, "__dict__") and hasattr(value, "state"):
        made = copy.copy(value)
        for name, part in vars(value).items():
            setattr(made, name, _copied(part))
        return made
    return value


def _arrays(value: Any) -> Iterator[Any]:
    import mlx.core as mx

    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _arrays(each)
    elif hasattr(value, "__dict__"):
        yield from _arrays(list(vars(value).values()))
