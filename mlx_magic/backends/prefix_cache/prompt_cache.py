"""Prefix cache of one model: keys and values, or whole states, of prompts that were read before."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.prompt_keys import PromptKeys
from mlx_magic.backends.prefix_cache.radix_tree import LEAST, PrefixCache, Rows


class CheckpointCache:
    """States of caches by the prompt that they hold.

    A sliding window or a recurrence forgets: its state fits the whole prompt only, not a part of
    it. So a state is found for a prompt that begins with all tokens of an earlier one.

    Under pressure, states at the end of an answer go first, as long as no later turn has used them:
    many answers are never followed up, while the state after an image serves any question about
    it. Then the least recently used ones go.

    Parameters
    ----------
    limit : int
        Maximum bytes.
    trim : callable
        Returns caches without unused capacity; see `kv_cache.trimmed`.

    Attributes
    ----------
    hits, misses : int
        Prompts with and without a state.
    nbytes : int
        Bytes held.
    """

    def __init__(
        self, limit: int, trim: Callable[[list[Any]], list[Any] | None] = lambda caches: None
    ) -> None:
        self.limit = limit
        self._trim = trim
        self.hits = self.misses = self.nbytes = 0
        self._untrimmed: list[tuple[Hashable, ...]] = []
        self._held: OrderedDict[tuple[Hashable, ...], _State] = OrderedDict()

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
                self._held[keys].unused_end = False
                return length, copied(self._held[keys].caches)
        self.misses += 1
        return 0, []

    def keep(
        self, prompt_keys: Sequence[Hashable], caches: list[Any], *, at_end: bool = False
    ) -> None:
        """Hold the state of caches that have read a prompt.

        Parameters
        ----------
        prompt_keys : sequence
            Keys of the tokens that they have read.
        caches : list
            One per layer. They may go on to be used.
        at_end : bool
            Whether an answer has ended, so that there is time to trim what is held: then, and not
            before a first token, arrays are cut to the tokens in them.
        """
        import mlx.core as mx

        keys = tuple(prompt_keys)
        if at_end:
            self._trim_all()
        if keys in self._held:
            self._held.move_to_end(keys)
            return
        made = (self._trim(caches) if at_end else None) or copied(caches)
        arrays = list(_arrays(made))
        size = sum(int(array.nbytes) for array in arrays)
        if len(keys) < LEAST or size > self.limit:
            return
        mx.eval(arrays)
        self._held[keys] = _State(made, size, unused_end=at_end)
        self.nbytes += size
        if not at_end:
            self._untrimmed.append(keys)
        self._evict()

    def clear(self) -> None:
        """Drop all states."""
        self._held.clear()
        self._untrimmed.clear()
        self.nbytes = 0

    def _evict(self) -> None:
        while self.nbytes > self.limit:
            # The newest one stays: a chat may go on.
            older = list(self._held)[:-1]
            ends = (keys for keys in older if self._held[keys].unused_end)
            keys = next(ends, None) or next(iter(self._held))
            self.nbytes -= self._held.pop(keys).nbytes

    def _trim_all(self) -> None:
        """Cut the arrays of states that were held before a first token."""
        import mlx.core as mx

        for keys in self._untrimmed:
            state = self._held.get(keys)
            if state is None:
                continue
            state.caches = self._trim(state.caches) or state.caches
            arrays = list(_arrays(state.caches))
            mx.eval(arrays)
            self.nbytes -= state.nbytes
            state.nbytes = sum(int(array.nbytes) for array in arrays)
            self.nbytes += state.nbytes
        self._untrimmed.clear()


@dataclass(slots=True)
class _State:
    """Caches, their bytes, and whether they end with an answer that no later turn has used."""

    caches: list[Any]
    nbytes: int
    unused_end: bool


def copied(caches: list[Any]) -> list[Any]:
    """Return caches that share the arrays, but not their later changes."""
    return [_copied(cache) for cache in caches]


def _copied(value: Any) -> Any:
    import mlx.core as mx

    if isinstance(value, mx.array):
        # A new handle on the same memory: an assignment to a slice changes the handle that it is
        # made to. ``mx.array(value)`` would copy (mlx 0.32.4).
        return value[...]
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


CacheKind = Literal["plain", "states"]
"""Plain KV caches, which can be cut anywhere; or others, whose states are kept as a whole."""

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
        Keys and values of the cached tokens, of plain caches.
    states : list
        Caches that have read the cached tokens, of other kinds; owned by this prompt.
    prompt_keys : PromptKeys or None
        Keys of the prompt's tokens; None if the prompt must not be cached.
    """

    count: int = 0
    rows: Rows = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    prompt_keys: PromptKeys | None = None

    def without_cache(self) -> CachedPrefix:
        """Start at the beginning of the prompt, and do not cache it."""
        self.count, self.rows, self.states, self.prompt_keys = 0, [], [], None
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
        if self.states:
            states, self.states = self.states, []
            return states
        made = new_caches()
        for cache, (keys, values) in zip(made, self.rows, strict=True):
            cache.keys, cache.values, cache.offset = keys, values, self.count
        self.rows = []
        return made


class PromptCache:
    """Keys and values of prompt prefixes.

    Plain caches are kept in a tree, and cut anywhere. Caches of a sliding window or of a recurrence
    cannot be cut: of these, whole states are kept, at the end of a prompt's last image and at the
    end of an answer.

    Parameters
    ----------
    limit : int
        Maximum bytes.
    kind : {"plain", "states"} or None
        Kind of the model's caches; None if its prompts must not be cached.
    may_keep : callable
        Called before a prompt is cached; if it returns False, no prompt is cached any more.
    trim : callable
        See `CheckpointCache`.
    """

    def __init__(
        self,
        limit: int,
        *,
        kind: CacheKind | None,
        may_keep: Callable[[], bool] = lambda: True,
        trim: Callable[[list[Any]], list[Any] | None] = lambda caches: None,
    ) -> None:
        self._held: PrefixCache | CheckpointCache = (
            CheckpointCache(limit, trim) if kind == "states" else PrefixCache(limit)
        )
        self._may_keep = may_keep
        self._kind = kind

    @property
    def takes_states(self) -> bool:
        """Whether whole states are kept."""
        return self._kind == "states"

    @property
    def limit(self) -> int:
        """Maximum bytes; 0 if no prompt is ever cached."""
        return self._held.limit if self._kind else 0

    @property
    def hits(self) -> int:
        """Prompts with a cached prefix."""
        return self._held.hits

    @property
    def misses(self) -> int:
        """Prompts that were read from the start, of a model whose prompts are cached."""
        return self._held.misses

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._held.nbytes

    def start(self, prompt_keys: Callable[[], PromptKeys | None]) -> CachedPrefix:
        """Look a prompt up.

        Parameters
        ----------
        prompt_keys : callable
            Returns the keys of the prompt, or None if it must not be cached. Not called for a
            model whose prompts are never cached.
        """
        keys = prompt_keys() if self._kind else None
        if keys is None:
            return CachedPrefix()
        if isinstance(self._held, CheckpointCache):
            count, states = self._held.find(keys.keys)
            return CachedPrefix(count, states=states, prompt_keys=keys)
        count, rows = self._held.find(keys.keys)
        return CachedPrefix(count, rows, prompt_keys=keys)

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
        held = self._held
        if isinstance(held, CheckpointCache) or start.prompt_keys is None or not rows:
            return
        if not self._kind or not self._allowed():
            return
        prompt = len(start.prompt_keys.keys) - start.count
        both = min(rows[0][0].shape[2] - prompt, len(answer))
        if both < 0:
            return
        end = prompt + both
        cut = [(keys[:, :, :end], values[:, :, :end]) for keys, values in rows]
        for fingerprint in start.prompt_keys.fingerprints:
            fingerprint.settle_soon()
        held.keep(start.prompt_keys.followed_by(answer[:both]), cut, start.count)

    def keep_state(
        self, start: CachedPrefix, length: int, answer: list[int], caches: list[Any] | None
    ) -> None:
        """Keep the state of caches that cannot be cut.

        Parameters
        ----------
        start : CachedPrefix
        length : int
            Tokens of the prompt that they have read.
        answer : list of int
            Tokens of the answer that they have read.
        caches : list or None
            One per layer. They may go on to be used.
        """
        keys, held = start.prompt_keys, self._held
        if isinstance(held, PrefixCache) or keys is None or not caches:
            return
        if not self._kind or not self._allowed():
            return
        at_end = length >= len(keys.keys)
        if at_end:
            for fingerprint in keys.fingerprints:
                fingerprint.settle_soon()
        read = keys.followed_by(answer) if at_end else keys.keys[:length]
        held.keep(read, caches, at_end=at_end)

    def _allowed(self) -> bool:
        """Whether prompts may be cached still; otherwise drop all."""
        if self._may_keep():
            return True
        self._kind = None
        self.clear()
        return False

    def reset_counts(self) -> None:
        """Reset the counts of hits and misses."""
        self._held.hits = self._held.misses = 0

    def clear(self) -> None:
        """Drop all prompts."""
        self._held.clear()
