"""By what arrays are told apart: digests of their bytes, type and shape."""

from __future__ import annotations

import functools
import hashlib
import secrets
from typing import Any

from mlx_magic.inference.backends import device

SIZE = 16
"""Bytes of a digest: two pictures meet by chance once in 10**19 or so."""

LARGE = 2**16
"""Bytes from which on an array is condensed on the GPU that it is on."""

LANES = 4
BLOCK = 4096


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


def condensed(array: Any) -> Any:
    """Multiply an MLX array's bytes with secret numbers; on its own device.

    To bring a picture from a GPU and hash it took 4.5 ms of a first token's 50 (H100).

    Returns
    -------
    mlx.core.array
        uint32, of shape (`LANES`, blocks). Sums of 16-bit words, each times a random 32-bit
        number, modulo 2**32: the upper half of such a sum is the same for two given arrays
        with a chance of 2**-16 (multilinear hashing), for all lanes 2**-64. The numbers are
        this process's own, so that nobody can make two pictures that meet.
    """
    import mlx.core as mx

    words = mx.contiguous(array).reshape(-1).view(mx.uint16)
    missing = -words.size % BLOCK
    blocks = mx.pad(words, (0, missing)).reshape(-1, BLOCK).astype(mx.uint32)
    # A lane at a time: all at once would take four times the room.
    return mx.stack([(blocks * mx.array(numbers)).sum(axis=1) for numbers in _numbers()])


@functools.cache
def _numbers() -> Any:
    import numpy as np

    drawn = np.frombuffer(secrets.token_bytes(4 * LANES * BLOCK), np.uint32)
    return drawn.reshape(LANES, BLOCK)


def digest(*parts: Any) -> bytes:
    """Return one digest of several parts; it holds within this process.

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
        held = np.ascontiguousarray(as_numpy(condensed(part) if _is_large(part) else part))
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


def _is_large(array: Any) -> bool:
    """Say whether an array is to be condensed where it is; on a CPU it is at hand."""
    import mlx.core as mx

    return (
        isinstance(array, mx.array)
        and array.nbytes >= LARGE
        and array.nbytes % 2 == 0
        and device.is_gpu()
    )
