"""Keys and values of answers, in whatever caches the libraries make: their bytes, quantized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_magic.backends.batching.memory_estimate import GROUPS, Shape
from mlx_magic.errors import GenerationError


def caches_nbytes(caches: list[Any]) -> int:
    """Return the bytes of all arrays in caches, of whatever kind; nothing is evaluated."""
    return sum(
        int(array.nbytes)
        for cache in flat(caches)
        for value in vars(cache).values()
        for array in _arrays(value)
    )


def require_bits(kv_bits: int | None, shape: Shape, model: str) -> None:
    """Refuse to quantize what cannot be.

    Raises
    ------
    GenerationError
        Where no group of numbers that share a scale fits the model's heads.
    """
    if kv_bits is not None and not shape.kv_group:
        groups = " or ".join(str(size) for size in GROUPS)
        raise GenerationError(
            f"{model}: --kv-bits wants heads whose size can be divided by {groups}, "
            f"and its have {shape.head_size}: leave --kv-bits out.",
            model=model,
        )


def quantized(caches: list[Any], kv_bits: int | None, shape: Shape, model: str) -> list[Any]:
    """Return empty caches that quantize what they are given; those of other kinds stay.

    Attention over them is slower: with the bundled model on two CPU cores (float32, 978
    tokens) reading took 2.3 times as long with 8 bits and 2.0 times with 4, writing 1.2 times,
    for 0.31 and 0.19 of the bytes.

    Parameters
    ----------
    caches : list
        Empty ones as the library makes them, one a layer.
    kv_bits : {4, 8} or None
        None leaves them all as they are.
    shape : Shape
    model : str
        Its name, for messages.

    Raises
    ------
    GenerationError
        Where none of them is a plain one.
    """
    if kv_bits is None:
        return caches
    # The others keep a window or a state of fixed size: there is little to save in them.
    plain = [type(cache).__name__ == "KVCache" for cache in caches]
    if not any(plain):
        raise GenerationError(
            f"{model}: what it keeps of a prompt cannot be quantized: leave --kv-bits out.",
            model=model,
        )
    return [
        cache.to_quantized(group_size=shape.kv_group, bits=int(kv_bits)) if is_plain else cache
        for cache, is_plain in zip(caches, plain, strict=True)
    ]


def _arrays(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _arrays(each)
    elif hasattr(value, "nbytes"):
        yield value


def flat(caches: list[Any]) -> list[Any]:
    """Return the caches of all layers, those inside of composite ones included."""
    return [c for cache in caches for c in flat(list(getattr(cache, "caches", ()))) or [cache]]
