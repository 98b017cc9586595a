"""By what arrays are told apart: digests of their bytes, type and shape, and fingerprints."""

from __future__ import annotations

import hashlib
from typing import Any

SIZE = 16
"""Bytes of a digest: two pictures meet by chance once in 10**19 or so."""

GLANCE = 1024
"""Numbers of an array that are looked at first."""


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
        state.update(f"array {getattr(part, 'dtype', '')} {tuple(part.shape)};".encode())
        held = np.ascontiguousarray(as_numpy(part))
        if held.dtype == object:
            raise TypeError("An array of objects has no digest.")
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


class Fingerprint:
    """Stands for parts in a dictionary; most that differ are told apart by a look at a few numbers.

    To hash a picture takes milliseconds of a first token's 50 (H100), and one that is new
    need not be hashed for that to be known. Only two that look alike are compared by their
    digests. It holds the parts until it is settled.

    Attributes
    ----------
    used : bool
        Whether something was looked for under it.

    Parameters
    ----------
    *parts
        As `digest` takes them, MLX arrays best before a GPU has touched them.

    Raises
    ------
    TypeError
        As `digest` does.
    """

    __slots__ = ("_digest", "_parts", "_quick_hash", "used")

    def __init__(self, *parts: Any) -> None:
        self._parts: tuple[Any, ...] | None = parts
        self._quick_hash = hash(digest(_sample(parts)))
        self._digest: bytes | None = None
        self.used = False

    def __hash__(self) -> int:
        self.used = True
        return self._quick_hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint) or self._quick_hash != other._quick_hash:
            return False
        return self is other or self.settle() == other.settle()

    def settle(self) -> bytes:
        """Let go of the parts; return their digest, which is all that is needed from here on."""
        if self._digest is None:
            self._digest = digest(*self._parts or ())
            self._parts = None
        return self._digest


def _sample(part: Any) -> Any:
    """Take a few numbers of each array, and everything else."""
    if is_array(part):
        held = as_numpy(part).reshape(-1)
        kind = str(getattr(part, "dtype", ""))
        return [kind, str(tuple(part.shape)), held[:: max(1, held.size // GLANCE)]]
    if isinstance(part, list | tuple):
        return [_sample(each) for each in part]
    if isinstance(part, dict):
        return {key: _sample(value) for key, value in part.items()}
    return part
