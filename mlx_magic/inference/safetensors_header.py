"""What a safetensors file holds, and whether all of it is there, from its header alone."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_magic.errors import CheckpointError

# The format's own limit; a larger number is damage, and must not be allocated.
MAX_HEADER_BYTES = 100_000_000

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

_AGAIN = "fetch the model again"


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor lies.

    Attributes
    ----------
    path : Path
        The file.
    start, nbytes : int
        Bytes from the file's beginning, and of the tensor.
    dtype : str
        As the file names it (``"BF16"``).
    shape : tuple of int
    """

    path: Path
    start: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


def tensor_bytes(path: Path, *, model: str) -> Counter[str]:
    """Read a safetensors header and check it against the size of the file.

    Parameters
    ----------
    path : Path
        The file; of its tensors nothing is read.
    model : str
        Name of the model, for the error.

    Returns
    -------
    collections.Counter
        Bytes of tensors, by dtype as the file names it (``"F16"``).

    Raises
    ------
    CheckpointError
        When the file is cut short, is no safetensors file, or contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if prefix == b"version ":
                raise _damaged(
                    path, model, "is only a Git LFS pointer", "run `git lfs pull` in its folder"
                )
            if len(prefix) < 8:
                raise _damaged(path, model, f"is cut short ({size} bytes)")
            if length > MAX_HEADER_BYTES:
                raise _damaged(path, model, "is no safetensors file")
            if length > size - 8:
                raise _damaged(path, model, f"is cut short ({size} bytes, inside its header)")
            header = _parsed(file.read(length), path, model)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _damaged(
            path, model, f"cannot be read ({reason})", "look at its permissions"
        ) from error
    return _checked(header, size - 8 - length, path, model)


def spans(path: Path) -> dict[str, Span]:
    """Return where each tensor of a file lies that `tensor_bytes` has found whole.

    Parameters
    ----------
    path : Path
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: Span(
            path,
            8 + length + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
            entry["dtype"],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _parsed(raw: bytes, path: Path, model: str) -> Mapping[str, Any]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, model, "has a damaged header") from error
    if not isinstance(header, dict):
        raise _damaged(path, model, "has a damaged header")
    return header


def _checked(header: Mapping[str, Any], room: int, path: Path, model: str) -> Counter[str]:
    spans: list[tuple[int, int]] = []
    sizes: Counter[str] = Counter()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end, dtype = _span(entry, path, model)
        spans.append((start, end))
        sizes[dtype] += end - start
    spans.sort()
    for (_, end), (start, _) in itertools.pairwise(spans):
        if start < end:
            raise _damaged(path, model, "has a damaged header (tensors overlap)")
    needed = max((end for _, end in spans), default=0)
    if needed > room:
        raise _damaged(path, model, f"is cut short ({needed - room} bytes are missing)")
    if needed < room:
        raise _damaged(path, model, f"is damaged ({room - needed} bytes more than its header says)")
    return sizes


def _span(entry: Any, path: Path, model: str) -> tuple[int, int, str]:
    """Return where a tensor begins and ends, and its dtype."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            natural = all(isinstance(n, int) and n >= 0 for n in shape)
            if natural and 0 <= start <= end:
                bits = _BITS.get(dtype)
                if bits is None or math.prod(shape) * bits == (end - start) * 8:
                    return start, end, dtype
    raise _damaged(path, model, "has a damaged header")


def _damaged(path: Path, model: str, what: str, todo: str = _AGAIN) -> CheckpointError:
    return CheckpointError(f"{model}: {path.name} {what}: {todo}.", model=model)
