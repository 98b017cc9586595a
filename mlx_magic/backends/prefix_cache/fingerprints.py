"""Cache keys of arrays: digests of their bytes, type and shape, and lazy fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

SIZE = 16
"""Bytes of a digest: 128 bits, so that chance collisions need some 10**19 images."""

GLANCE = 1024
"""Numbers of an array that the quick hash samples."""


def as_numpy(array: Any) -> Any:
    """Return an array as NumPy's; bfloat16, which NumPy does not have, is viewed as uint16."""
    import mlx.core as mx
    import numpy as np

    if isinstance(array, mx.array) and array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.asarray(array)


def is_array(value: Any) -> bool:
    """Whether a value is an array of MLX or NumPy."""
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
        A part is of another type.
    """
    state = hashlib.sha256()
    _feed(state, (parts,))
    return state.digest()[:SIZE]


def _feed(state: Any, parts: Sequence[Any]) -> None:
    """Hash each part after its kind and length, so that different lists of parts stay different."""
    import mlx.core as mx
    import numpy as np

    for part in parts:
        if isinstance(part, mx.array | np.ndarray):
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
            _feed(state, part)
        elif isinstance(part, dict):
            _feed(
                state, ([item for key in sorted(part, key=str) for item in (str(key), part[key])],)
            )
        else:
            raise TypeError(f"{type(part).__name__} has no digest.")


class Fingerprint:
    """Lazy dictionary key of parts such as an image's arrays.

    Its hash samples a few numbers, which tells most parts apart. Only fingerprints with equal
    hashes are compared by their full digests: a digest takes milliseconds of the 50 ms to a first
    token (H100), and a new image rarely needs one. The parts are held until `settle` is called.

    Attributes
    ----------
    used : bool
        Whether the fingerprint was looked up in a dictionary.

    Parameters
    ----------
    *parts
        As for `digest`. Reading MLX arrays is quicker before a GPU has used them.

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
        """Compute the digest, drop the parts, and return the digest."""
        parts = self._parts
        if self._digest is None:
            self._digest = digest(*parts or ())
        # After the digest, since two threads may settle at once.
        self._parts = None
        return self._digest

    def settle_soon(self) -> None:
        """Settle on another thread, which takes 10 to 20 ms for the pixels of a large image."""
        if self._digest is None:
            _background().submit(self.settle)


@cache
def _background() -> ThreadPoolExecutor:
    # Hashing releases Python's lock.
    return ThreadPoolExecutor(1, "mlx-magic-digests")


def _sample(part: Any) -> Any:
    """Return the parts with a sample of each array's numbers in its place."""
    import mlx.core as mx
    import numpy as np

    if isinstance(part, mx.array | np.ndarray):
        held = as_numpy(part).reshape(-1)
        kind = str(getattr(part, "dtype", ""))
        return [kind, str(tuple(part.shape)), held[:: max(1, held.size // GLANCE)]]
    if isinstance(part, list | tuple):
        return [_sample(each) for each in part]
    if isinstance(part, dict):
        return {key: _sample(value) for key, value in part.items()}
    return part
