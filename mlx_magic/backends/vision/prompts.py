"""Prompts of a vision model that wait for prefill, and merging of several for one prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.backends.batching.batch import Slot, similar_lengths
from mlx_magic.backends.batching.sampling import LogitsProcessor


@dataclass(slots=True, eq=False)
class VisionPrompt:
    """A prompt that waits for prefill.

    Attributes
    ----------
    slot : Slot
    tokens : list of int
    embeds : dict
        Output of the model's ``get_input_embeddings``: ``inputs_embeds`` of shape
        (1, tokens, width), and further inputs of the language model.
    max_tokens : int
        Tokens that may still be generated.
    cache : list or None
        KV caches filled with a prefix, owned by this prompt; `tokens` and `embeds` then hold what
        follows the prefix.
    keep_from : int or None
        First token whose keys and values the request takes after the answer; None for none.
    processors : list of callable
        Logits processors.
    begun, ended : bool
        Whether the first token was handed out before the decode step that returns it, and
        whether the last one was handed out.
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
        """Whether the prompt has embeddings only, so that it can share a prefill."""
        return set(self.embeds) == {"inputs_embeds"}

    def compatible_with(self, other: VisionPrompt) -> bool:
        """Whether both prompts can share a prefill without much padding."""
        similar = similar_lengths(len(self.tokens), len(other.tokens))
        return similar and self.plain and (self.cache is None) == (other.cache is None)


def extra_inputs(embeds: dict[str, Any]) -> dict[str, Any]:
    """Return a prompt's inputs other than its embeddings."""
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
    """Merge the KV caches of prompts with a prefix; return them with the right padding."""
    layers = zip(*(prompt.cache or [] for prompt in prompts), strict=True)
    lengths = [len(prompt.tokens) for prompt in prompts]
    padding = [max(lengths) - length for length in lengths]
    caches = [type(layer[0]).merge(list(layer)) for layer in layers]
    return caches, {"right_pad_per_row": padding, "suffix_lens": lengths}
