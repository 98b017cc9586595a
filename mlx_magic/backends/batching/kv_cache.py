"""KV caches of the libraries: their bytes, and quantized ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mlx_magic.backends.batching.memory_estimate import GROUPS, ModelDimensions
from mlx_magic.errors import GenerationError
from mlx_magic.models.upstream_checks import Mechanism


def caches_nbytes(caches: list[Any]) -> int:
    """Return the bytes of all arrays in caches of any kind, without evaluating them."""
    return sum(
        int(array.nbytes)
        for cache in leaf_caches(caches)
        for value in vars(cache).values()
        for array in _arrays(value)
    )


def made(mechanism: Mechanism, language_model: Any) -> list[Any]:
    """Return new caches of a request, one per layer; none if only the library can make them.

    Parameters
    ----------
    mechanism : Mechanism
        `upstream.TEXT_CACHES` or `upstream.VISION_CACHES`.
    language_model : module
    """
    if mechanism.off is not None:
        return []
    caches: list[Any] = mechanism.names.make_prompt_cache(language_model)
    return caches


def library_options(
    caches: list[Any], kv_bits: int | None, shape: ModelDimensions
) -> dict[str, Any]:
    """Return the arguments of ``stream_generate`` for its caches.

    Parameters
    ----------
    caches : list
        Empty if the library is to make them itself.
    kv_bits : {4, 8} or None
    shape : ModelDimensions
    """
    if caches:
        return {"prompt_cache": caches}
    if kv_bits is None:
        return {}
    return {"kv_bits": int(kv_bits), "kv_group_size": shape.kv_group, "quantized_kv_start": 0}


def require_bits(kv_bits: int | None, shape: ModelDimensions, model: str) -> None:
    """Refuse `kv_bits` for a model whose KV cache cannot be quantized.

    Raises
    ------
    GenerationError
        The head size is not divisible by any supported group size.
    """
    if kv_bits is not None and not shape.kv_group:
        groups = " or ".join(str(size) for size in GROUPS)
        raise GenerationError(
            f"{model}: --kv-bits needs a head size divisible by {groups}, but this model's is "
            f"{shape.head_size}: leave --kv-bits out.",
            model=model,
        )


def quantized(
    caches: list[Any], kv_bits: int | None, shape: ModelDimensions, model: str
) -> list[Any]:
    """Replace plain KV caches by quantized ones; caches of other kinds stay.

    Attention over quantized caches is slower. With the bundled model on two CPU cores (float32,
    978 tokens) prefill took 2.3 times as long with 8 bits and 2.0 times with 4, decode 1.2
    times, for 0.31 and 0.19 of the bytes.

    Parameters
    ----------
    caches : list
        Empty caches as the library makes them, one per layer. None if it makes them itself.
    kv_bits : {4, 8} or None
        None returns the caches unchanged.
    shape : ModelDimensions
    model : str
        Name of the model, for messages.

    Raises
    ------
    GenerationError
        None of the caches is a plain KV cache.
    """
    if kv_bits is None or not caches:
        return caches
    # Other kinds keep a window or a state of fixed size, where quantization saves little.
    plain = [all_plain([cache]) for cache in caches]
    if not any(plain):
        raise GenerationError(
            f"{model}: this model has no KV cache that can be quantized: leave --kv-bits out.",
            model=model,
        )
    return [
        cache.to_quantized(group_size=shape.kv_group, bits=int(kv_bits)) if is_plain else cache
        for cache, is_plain in zip(caches, plain, strict=True)
    ]


def all_plain(caches: list[Any]) -> bool:
    """Whether all caches are plain KV caches, which can be padded, cut and merged."""
    return all(type(cache).__name__ == "KVCache" for cache in caches)


def has_rows(cache: Any) -> bool:
    """Whether a cache has a row per request."""
    parts = getattr(cache, "caches", ()) or (cache,)
    return all(hasattr(part, "filter") and hasattr(part, "extend") for part in parts)


def as_batch(cache: Any) -> Any:
    """Return a cache that has a row per request, made of a single request's cache if need be."""
    return cache if has_rows(cache) else type(cache).merge([cache])


def merged(*requests: list[Any]) -> list[Any]:
    """Merge the caches of requests into caches with a row per request, one per layer."""
    return [type(layer[0]).merge(list(layer)) for layer in zip(*requests, strict=True)]


def prepare_padding(caches: list[Any], lengths: Sequence[int]) -> None:
    """Tell caches with a row per request how many of the next tokens of each row are no padding.

    To be followed by `move_padding_left` once these tokens are read, the padding included.
    """
    longest = max(lengths)
    padding = [longest - length for length in lengths]
    if any(padding):
        for cache in leaf_caches(caches):
            # A merged cache of states may note that there is no padding on the left.
            cache.finalize()
            cache.prepare(lengths=list(lengths), right_padding=padding)


def move_padding_left(caches: list[Any]) -> None:
    """End what `prepare_padding` began: rows end with their last token again."""
    for cache in leaf_caches(caches):
        cache.finalize()


def can_pad(caches: list[Any]) -> bool:
    """Whether caches of single requests, once merged, know of padding on the right."""
    return all(
        hasattr(part, "prepare") and hasattr(part, "finalize")
        for cache in merged(caches, caches)
        for part in leaf_caches([cache])
    )


def extracted(caches: list[Any], row: int) -> list[Any] | None:
    """Return the caches of one row, one per layer; None if a cache cannot give it."""
    if all(has_rows(cache) for cache in caches):
        if not all(hasattr(cache, "extract") for cache in caches):
            return None
        return [cache.extract(row) for cache in caches]
    # Caches of a single request.
    return caches if row == 0 else None


def trimmed(caches: list[Any]) -> list[Any] | None:
    """Return copies of a request's caches without unused capacity.

    None if there is none, or if that is not possible.

    What has left a sliding window is left out, too. The copies have been rows of a batch, where
    they have the same content for the model: each model is checked for that before its requests
    are batched, or its prompts cached.
    """
    if all(_is_tight(cache) for cache in leaf_caches(caches)):
        return None
    try:
        # A row of a batch would lose the first tokens that a window keeps.
        if any(cache.empty() or getattr(cache, "keep", 0) for cache in leaf_caches(caches)):
            return None
        return extracted(merged(caches), 0)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None


def _is_tight(cache: Any) -> bool:
    """Whether a cache has no room for more tokens than it holds; always so for other states."""
    keys: Any = getattr(cache, "keys", None)
    offset = getattr(cache, "offset", None)
    if not hasattr(keys, "shape") or not isinstance(offset, int):
        return True
    return int(keys.shape[2]) <= min(offset, getattr(cache, "max_size", None) or offset)


def states(caches: list[Any]) -> list[Any]:
    """Return the arrays of caches, to evaluate them."""
    return [array for cache in caches for array in _arrays(getattr(cache, "state", None))]


def _arrays(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _arrays(each)
    elif hasattr(value, "nbytes"):
        yield value


def leaf_caches(caches: list[Any]) -> list[Any]:
    """Return the caches of all layers; composite caches are replaced by their parts."""
    return [
        c for cache in caches for c in leaf_caches(list(getattr(cache, "caches", ()))) or [cache]
    ]
