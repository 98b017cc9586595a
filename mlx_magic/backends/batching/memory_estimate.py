"""Estimate of a request's memory, made before the request starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_magic.errors import MemoryBudgetError
from mlx_magic.models.checkpoints.config_limits import HEADS, KV_HEADS, TEXT_PARTS

_LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
_WIDTH = ("hidden_size", "dim", "n_embd", "d_model")

GROUPS = (64, 32)
"""Group sizes of quantized caches that the libraries support."""

BLOCK = 256
"""Tokens by which a KV cache grows at a time: up to this many may stay unused."""

# Arrays of the residual stream's width that one layer holds per token of a chunk: queries, keys,
# values, the stream, and the two halves of a gated MLP, about 2.7 times as wide as the stream.
_STREAMS_A_TOKEN = 10


@dataclass(frozen=True, slots=True)
class ModelDimensions:
    """Dimensions of a language model that decide how much memory a token takes.

    Attributes
    ----------
    layers, heads, kv_heads, head_size, width, vocabulary : int
        0 if config.json does not have it.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    width: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelDimensions:
        """Read the dimensions from a parsed config.json."""
        text: Mapping[str, Any] = next(
            (config[p] for p in TEXT_PARTS if isinstance(config.get(p), dict)), {}
        )
        both = {**config, **text}
        heads, width = _first(both, HEADS), _first(both, _WIDTH)
        return cls(
            layers=_first(both, _LAYERS),
            heads=heads,
            kv_heads=_first(both, KV_HEADS) or heads,
            head_size=_first(both, ("head_dim",)) or (width // heads if heads else 0),
            width=width,
            vocabulary=_first(both, ("vocab_size",)),
        )

    @property
    def kv_group(self) -> int:
        """Group size for a quantized cache; 0 if the cache cannot be quantized.

        If the head size is unknown, the smallest group size, which divides the most sizes.
        """
        if not self.head_size:
            return GROUPS[-1]
        return next((size for size in GROUPS if self.head_size % size == 0), 0)

    def kv_bytes(self, itemsize: int, kv_bits: int | None = None) -> int:
        """Bytes of keys and values per token; 0 if unknown."""
        numbers = 2 * self.layers * self.kv_heads * self.head_size
        if kv_bits is None or not self.kv_group:
            return numbers * itemsize
        # Each group has a scale and a bias in full precision.
        return numbers * kv_bits // 8 + 2 * (numbers // self.kv_group) * itemsize


@dataclass(frozen=True, slots=True)
class RequestMemory:
    """Maximum memory of a request, in bytes.

    Attributes
    ----------
    cache : int
        Keys and values of the prompt and of an answer of max_tokens.
    reading : int
        Intermediate arrays of one prefill chunk, without logits.
    logits : int
        Logits at the end of prefill, of all prompts that share it.
    joint_reading : int
        Intermediate arrays of a chunk that several such prompts fill together; 0 if it is as much
        as `reading`.
    """

    cache: int
    reading: int
    logits: int = 0
    joint_reading: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.cache + self.reading + self.logits


def estimate_request(
    shape: ModelDimensions,
    *,
    prompt_tokens: int,
    max_tokens: int,
    chunk: int,
    itemsize: int,
    at_once: int = 0,
    kv_bits: int | None = None,
    rows: int = 1,
    positions: int = 0,
) -> RequestMemory:
    """Estimate the memory of a request.

    Parameters
    ----------
    shape : ModelDimensions
    prompt_tokens : int
        Exact number, image tokens included.
    max_tokens : int
        Maximum tokens of the answer.
    chunk : int
        Prompt tokens per prefill chunk.
    itemsize : int
        Bytes per number.
    at_once : int
        Tokens of all prompts in a prefill that one call reads together with the last token, and
        that may have logits; 0 if the last token has a call of its own.
    kv_bits : {4, 8} or None
        Bits of a quantized KV cache.
    rows : int
        Copies of the prompt's keys and values, for answers that are scored.
    positions : int
        Tokens of all such rows whose logits are computed at once.
    """
    cache = rows * shape.kv_bytes(itemsize, kv_bits) * (prompt_tokens + max_tokens + BLOCK)
    # Attention scores of one layer (if attention is not fused).
    each = (shape.width * _STREAMS_A_TOKEN + prompt_tokens * shape.heads) * itemsize
    row = shape.vocabulary * 4
    # Scores are computed in float32, beside the model's own.
    logits = max(at_once * itemsize, positions * (itemsize + 4)) * shape.vocabulary
    return RequestMemory(
        cache,
        reading=min(chunk, prompt_tokens) * each + row,
        logits=logits,
        joint_reading=chunk * each + row,
    )


def require_memory(
    model: str,
    needed: RequestMemory,
    *,
    free: int,
    prompt_tokens: int,
    image_tokens: int,
    max_tokens: int,
    may_quantize: bool = False,
) -> None:
    """Refuse a request that needs more memory than is free.

    Parameters
    ----------
    model : str
    needed : RequestMemory
    free : int
        Bytes.
    prompt_tokens, image_tokens, max_tokens : int
    may_quantize : bool
        Whether to suggest `--kv-bits`.

    Raises
    ------
    MemoryBudgetError
        The message names the numbers and remedies.
    """
    if needed.total <= free:
        return
    remedies = []
    if image_tokens > prompt_tokens // 2:
        remedies.append("a smaller --max-pixels or fewer images")
    if max_tokens > prompt_tokens:
        remedies.append("a smaller --max-tokens")
    if may_quantize and needed.cache > needed.reading:
        remedies.append("--kv-bits 8")
    remedies.append("unloading another model")
    raise MemoryBudgetError(
        f"{model} would need {needed.total / 1e9:.2f} GB to read {prompt_tokens:,} tokens "
        f"({image_tokens:,} of images) and write up to {max_tokens:,}, but "
        f"{max(free, 0) / 1e9:.2f} GB are free: {', '.join(remedies)} would help.",
        model=model,
        needed_bytes=needed.total,
        limit_bytes=max(free, 0),
    )


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    values = (config.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)
