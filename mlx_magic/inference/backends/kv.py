"""Keys and values of answers, in whatever caches the libraries make: the bytes they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_magic.inference.backends.prefill import flat


def nbytes(caches: list[Any]) -> int:
    """Return the bytes of all arrays in caches, of whatever kind; nothing is evaluated."""
    return sum(
        int(array.nbytes)
        for cache in flat(caches)
        for value in vars(cache).values()
        for array in _arrays(value)
    )


def _arrays(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _arrays(each)
    elif hasattr(value, "nbytes"):
        yield value
