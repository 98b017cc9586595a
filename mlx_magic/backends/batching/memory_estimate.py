"""How much memory a request will take, reckoned before it takes any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_magic.errors import MemoryBudgetError

_TEXT_PARTS = ("text_config", "llm_config", "language_config", "llm", "language_model")
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
_KV_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads")
_HEADS = ("num_attention_heads", "n_heads", "n_head")
_WIDTH = ("hidden_size", "dim", "n_embd", "d_model")

GROUPS = (64, 32)
"""Numbers that share a scale in a quantized cache, as the libraries can have it."""

BLOCK = 256
"""Tokens for which a cache grows at a time: so much of it may stay empty."""

# Queries, keys, values, the residual stream and the two halves of a gated MLP, which is about
# 2.7 times as wide as the stream: what one layer holds for each token of a chunk.
_STREAMS_A_TOKEN = 10


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a language model decides how much memory a token takes.

    Attributes
    ----------
    layers, heads, kv_heads, head_size, width, vocabulary : int
        0 where config.json does not say.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    width: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read it from a parsed config.json."""
        text: Mapping[str, Any] = next(
            (config[p] for p in _TEXT_PARTS if isinstance(config.get(p), dict)), {}
        )
        both = {**config, **text}
        heads, width = _first(both, _HEADS), _first(both, _WIDTH)
        return cls(
            layers=_first(both, _LAYERS),
            heads=heads,
            kv_heads=_first(both, _KV_HEADS) or heads,
            head_size=_first(both, ("head_dim",)) or (width // heads if heads else 0),
            width=width,
            vocabulary=_first(both, ("vocab_size",)),
        )

    @property
    def kv_group(self) -> int:
        """Numbers that share a scale in a quantized cache; 0 where it cannot be quantized.

        Where the head size is not known, the smallest: it fits more of them.
        """
        if not self.head_size:
            return GROUPS[-1]
        return next((size for size in GROUPS if self.head_size % size == 0), 0)

    def kv_bytes(self, itemsize: int, kv_bits: int | None = None) -> int:
        """Bytes of keys and values for one token; 0 where that is unknown."""
        numbers = 2 * self.layers * self.kv_heads * self.head_size
        if kv_bits is None or not self.kv_group:
            return numbers * itemsize
        # Each group has a scale and a bias, of full precision.
        return numbers * kv_bits // 8 + 2 * (numbers // self.kv_group) * itemsize


@dataclass(frozen=True, slots=True)
class Need:
    """What a request will take at most, in bytes.

    Attributes
    ----------
    cache : int
        Keys and values of the prompt and of the longest answer.
    reading : int
        What a chunk of the prompt takes while it is read, but for logits.
    logits : int
        Those that are made at the end of reading: of all prompts that are read together.
    """

    cache: int
    reading: int
    logits: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.cache + self.reading + self.logits


def need(
    shape: Shape,
    *,
    prompt_tokens: int,
    max_tokens: int,
    chunk: int,
    itemsize: int,
    at_once: int = 0,
    kv_bits: int | None = None,
) -> Need:
    """Reckon what a request will take.

    Parameters
    ----------
    shape : Shape
    prompt_tokens : int
        The real number, pictures included.
    max_tokens : int
        Of the answer.
    chunk : int
        Tokens that are read at once.
    itemsize : int
        Bytes of a number.
    at_once : int
        Tokens, of all that are read together, that are read in one call with the last one, and
        of which there may be logits; 0 where that is read by itself.
    kv_bits : {4, 8} or None
        What keys and values are quantized to.
    """
    cache = shape.kv_bytes(itemsize, kv_bits) * (prompt_tokens + max_tokens + BLOCK)
    chunk = min(chunk, prompt_tokens)
    streams = chunk * shape.width * _STREAMS_A_TOKEN * itemsize
    # One layer's scores, where attention is not fused, and one row of the vocabulary.
    scores = chunk * prompt_tokens * shape.heads * itemsize
    logits = at_once * shape.vocabulary * itemsize
    return Need(cache, streams + scores + shape.vocabulary * 4, logits)


def require_memory(
    model: str,
    needed: Need,
    *,
    free: int,
    prompt_tokens: int,
    image_tokens: int,
    max_tokens: int,
    may_quantize: bool = False,
) -> None:
    """Refuse a request that cannot fit beside what is there.

    Parameters
    ----------
    model : str
    needed : Need
    free : int
        Bytes.
    prompt_tokens, image_tokens, max_tokens : int
    may_quantize : bool
        Whether `--kv-bits` is left to try.

    Raises
    ------
    MemoryBudgetError
        With the numbers, and what would help.
    """
    if needed.total <= free:
        return
    remedies = []
    if image_tokens > prompt_tokens // 2:
        remedies.append("a smaller --max-pixels or fewer pictures")
    if max_tokens > prompt_tokens:
        remedies.append("a smaller --max-tokens")
    if may_quantize and needed.cache > needed.reading:
        remedies.append("--kv-bits 8")
    remedies.append("unloading another model")
    raise MemoryBudgetError(
        f"{model} would need {needed.total / 1e9:.2f} GB to read {prompt_tokens:,} tokens "
        f"({image_tokens:,} of pictures) and write up to {max_tokens:,}, but "
        f"{max(free, 0) / 1e9:.2f} GB are free: {', '.join(remedies)} would help.",
        model=model,
        needed_bytes=needed.total,
        limit_bytes=max(free, 0),
    )


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    values = (config.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)
