"""By what arrays are told apart: digests of their bytes, type and shape."""

from __future__ import annotations

import hashlib
from typing import Any

SIZE = 16
"""Bytes of a digest: two pictures meet by chance once in 10**19 or so."""


def as_numpy(array: Any) -> Any:
    """Return an MLX array's numbers; bfloat16, which NumPy does not have, as whole numbers."""
    import mlx.core as mx
    import numpy as np

    if isinstance(array, mx.array) and array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.asarray(array)


def is_array(value: Any) -> bool:
    """Say whether a value is an array of MLX or NumPy."""
    import mlx.core as mx
    import numpy as np

    return isinstance(value, mx.array | np.ndarray)


def digest(*parts: Any) -> bytes:
    """Return one digest of several parts.

    Parameters
    ----------
    *parts : array, bytes, str, number, None, or list, tuple or dict of these

    Raises
    ------
    TypeError
        For anything else: what it is made of is not known.
    """
    state = hashlib.sha256()
    _feed(state, parts)
    return state.digest()[:SIZE]


def _feed(state: Any, part: Any) -> None:
    """Take in one part; kind and length come first, so that no two lists of parts look alike."""
    import numpy as np

    if is_array(part):
        held = np.ascontiguousarray(as_numpy(part))
        if held.dtype == object:
            raise TypeError("An array of objects has no digest.")
        state.update(f"array {getattr(part, 'dtype', '')} {tuple(part.shape)};".encode())
        state.update(held.reshape(-1).view(np.uint8).data)
    elif isinstance(part, bytes):
        state.update(b"bytes %d;" % len(part) + part)
    elif part is None or isinstance(part, str | int | float):
        text = repr(part).encode()
        state.update(f"{type(part).__name__} {len(text)};".encode() + text)
    elif isinstance(part, list | tuple):
        state.update(f"{len(part)} of;".encode())
        for each in part:
            _feed(state, each)
    elif isinstance(part, dict):
        _feed(state, [item for key in sorted(part, key=str) for item in (str(key), part[key])])
    else:
        raise TypeError(f"{type(part).__name__} has no digest.")
