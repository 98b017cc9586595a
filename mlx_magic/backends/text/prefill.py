"""Reading prompts of a text model together, in chunks between which any of them may leave."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.backends.batching.batch import Slot, similar_lengths
from mlx_magic.backends.batching.sampling import LogitsProcessor


@dataclass(slots=True, eq=False)
class TextPrompt:
    """A prompt that waits to be read, or is.

    Attributes
    ----------
    slot : Slot
    tokens : list of int
        At least one.
    cache : list or None
        One of its own with a prefix in it, one a layer; `tokens` is what follows then.
    processors : list of callable
        What changes its logits.
    """

    slot: Slot
    tokens: list[int]
    cache: list[Any] | None = None
    processors: list[LogitsProcessor] = field(default_factory=list)

    def compatible_with(self, other: TextPrompt) -> bool:
        """Say whether both can be read in one go without wasting much of it."""
        similar = similar_lengths(len(self.tokens), len(other.tokens))
        return similar and (self.cache is None) == (other.cache is None)

    @property
    def prefill_length(self) -> int:
        """Tokens that are read before the last: that one writes the first of the answer."""
        return len(self.tokens) - 1


@dataclass(slots=True, eq=False)
class PrefillBatch:
    """Prompts that are read together, beginning with the same chunk.

    Attributes
    ----------
    prompts : list of TextPrompt
    caches : list
        One a layer. Of a single prompt plain ones, as mlx-lm uses alone.
    done : int
        Places that were read of each; shorter prompts are filled up on the right.
    joined : bool
        Whether `caches` are those of a batch.
    """

    prompts: list[TextPrompt]
    caches: list[Any]
    joined: bool
    done: int = 0

    @property
    def length(self) -> int:
        """Places to read."""
        return max(prompt.prefill_length for prompt in self.prompts)

    def chunk(self, most: int) -> list[list[int]]:
        """Return the next tokens of each prompt; all rows are equally long.

        Parameters
        ----------
        most : int
            Tokens in all, so that a chunk of many prompts takes no longer than of one.
        """
        end = min(self.done + max(1, most // len(self.prompts)), self.length)
        rows = [
            prompt.tokens[self.done : min(end, prompt.prefill_length)] for prompt in self.prompts
        ]
        return [row + [0] * (end - self.done - len(row)) for row in rows]

    def advance(self, positions: int) -> None:
        """Count what was read."""
        self.done += positions
        for prompt in self.prompts:
            prompt.slot.read = min(self.done, prompt.prefill_length)

    def keep(self, uids: Collection[int]) -> None:
        """Go on with these requests alone."""
        rows = [at for at, prompt in enumerate(self.prompts) if prompt.slot.uid in uids]
        if rows and len(rows) < len(self.prompts):
            for cache in self.caches:
                cache.filter(rows)
        self.prompts = [self.prompts[at] for at in rows]

    def move_padding_left(self) -> None:
        """Move what was filled up on the right to the left, where a batch wants it."""
        padding = [self.done - prompt.prefill_length for prompt in self.prompts]
        if any(padding):
            for cache in self.caches:
                cache.prepare(right_padding=padding)
                cache.finalize()


def joined(*requests: list[Any]) -> list[Any]:
    """Turn the caches of requests into those of a batch, with a row for each request."""
    return [layer[0].merge(list(layer)) for layer in zip(*requests, strict=True)]
