"""Prompts of a vision model that wait to be read, and what it takes to read some together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.backends.batching.batch import Slot, similar_lengths
from mlx_magic.backends.batching.sampling import LogitsProcessor


@dataclass(slots=True, eq=False)
class VisionPrompt:
    """A prompt that waits to be read.

    Attributes
    ----------
    slot : Slot
    tokens : list of int
    embeds : dict
        What the model's ``get_input_embeddings`` gave: ``inputs_embeds`` of shape
        (1, tokens, width), and what else the language model wants.
    max_tokens : int
        Those that may still be written.
    cache : list or None
        One of its own with a prefix in it; `tokens` and `embeds` are what follows then.
    keep_from : int or None
        Where keys and values are wanted once the answer has ended: from which token on.
    processors : list of callable
        What changes its logits.
    begun, ended : bool
        Whether its first token was handed out before the step that gives it, and its last was.
    """

    slot: Slot
    tokens: list[int]
    embeds: dict[str, Any]
    max_tokens: int
    cache: list[Any] | None = None
    keep_from: int | None = None
    processors: list[LogitsProcessor] = field(default_factory=list)
    begun: bool = False
    ended: bool = False

    @property
    def plain(self) -> bool:
        """Whether it can be read beside others: nothing but embeddings belongs to it."""
        return set(self.embeds) == {"inputs_embeds"}

    def compatible_with(self, other: VisionPrompt) -> bool:
        """Say whether both can be read in one go without wasting much of it."""
        similar = similar_lengths(len(self.tokens), len(other.tokens))
        return similar and self.plain and (self.cache is None) == (other.cache is None)


def extra_inputs(embeds: dict[str, Any]) -> dict[str, Any]:
    """Return what belongs to a prompt beside its embeddings."""
    return {key: value for key, value in embeds.items() if key != "inputs_embeds"}


def padded(rows: Sequence[Any], *, left: bool) -> Any:
    """Return embeddings of different length as one array, padded on one side."""
    import mlx.core as mx

    longest = max(row.shape[1] for row in rows)
    missing = [longest - row.shape[1] for row in rows]
    return mx.concatenate(
        [
            mx.pad(row, [(0, 0), (pad, 0) if left else (0, pad), (0, 0)])
            for row, pad in zip(rows, missing, strict=True)
        ],
        axis=0,
    )


def merged_caches(prompts: Sequence[VisionPrompt]) -> tuple[list[Any], dict[str, Any]]:
    """Put the prompts' caches together; what is read after them is padded on the right."""
    layers = zip(*(prompt.cache or [] for prompt in prompts), strict=True)
    lengths = [len(prompt.tokens) for prompt in prompts]
    padding = [max(lengths) - length for length in lengths]
    caches = [type(layer[0]).merge(list(layer)) for layer in layers]
    return caches, {"right_pad_per_row": padding, "suffix_lens": lengths}
