"""Prefill of several prompts of a text model in chunks; a prompt can leave between two chunks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.backends.batching.batch import Slot, similar_lengths
from mlx_magic.backends.batching.sampling import LogitsProcessor


@dataclass(slots=True, eq=False)
class TextPrompt:
    """A prompt that waits for prefill or is in prefill.

    Attributes
    ----------
    slot : Slot
    tokens : list of int
        At least one.
    cache : list or None
        KV caches filled with a prefix, one per layer, owned by this prompt; `tokens` then holds
        what follows the prefix.
    processors : list of callable
        Logits processors.
    """

    slot: Slot
    tokens: list[int]
    cache: list[Any] | None = None
    processors: list[LogitsProcessor] = field(default_factory=list)

    def compatible_with(self, other: TextPrompt) -> bool:
        """Whether both prompts can share a prefill without much padding."""
        similar = similar_lengths(len(self.tokens), len(other.tokens))
        return similar and (self.cache is None) == (other.cache is None)

    @property
    def prefill_length(self) -> int:
        """Number of tokens before the last one, from which decode makes the first token."""
        return len(self.tokens) - 1


@dataclass(slots=True, eq=False)
class PrefillBatch:
    """Prompts that share a prefill from its first chunk on.

    Attributes
    ----------
    prompts : list of TextPrompt
    caches : list
        One per layer; plain caches for a single prompt, as in mlx-lm's own generation.
    done : int
        Positions read so far; shorter prompts are padded on the right.
    joined : bool
        Whether `caches` are batch caches.
    """

    prompts: list[TextPrompt]
    caches: list[Any]
    joined: bool
    done: int = 0

    @property
    def length(self) -> int:
        """Positions to read."""
        return max(prompt.prefill_length for prompt in self.prompts)

    def chunk(self, most: int) -> list[list[int]]:
        """Return the next tokens of each prompt, padded to equal length.

        Parameters
        ----------
        most : int
            Maximum tokens of all rows, so that a chunk of many prompts takes as long as of one.
        """
        end = min(self.done + max(1, most // len(self.prompts)), self.length)
        rows = [
            prompt.tokens[self.done : min(end, prompt.prefill_length)] for prompt in self.prompts
        ]
        return [row + [0] * (end - self.done - len(row)) for row in rows]

    def advance(self, positions: int) -> None:
        """Count positions as read."""
        self.done += positions
        for prompt in self.prompts:
            prompt.slot.read = min(self.done, prompt.prefill_length)

    def keep(self, uids: Collection[int]) -> None:
        """Drop all other requests."""
        rows = [at for at, prompt in enumerate(self.prompts) if prompt.slot.uid in uids]
        if rows and len(rows) < len(self.prompts):
            for cache in self.caches:
                cache.filter(rows)
        self.prompts = [self.prompts[at] for at in rows]

    def move_padding_left(self) -> None:
        """Move the padding from the right to the left, as mlx-lm's batch needs it."""
        padding = [self.done - prompt.prefill_length for prompt in self.prompts]
        if any(padding):
            for cache in self.caches:
                cache.prepare(right_padding=padding)
                cache.finalize()


def joined(*requests: list[Any]) -> list[Any]:
    """Merge the caches of requests into batch caches with a row per request."""
    return [layer[0].merge(list(layer)) for layer in zip(*requests, strict=True)]
