"""Reads headers of safetensors files, and checks that the files are complete."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_magic.errors import CheckpointError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import strict_json
from mlx_magic.models.checkpoints.strict_json import UnreadableFileError

# Enough for 60,000 tensors, ten times as many as published files have. The format allows 100 MB,
# which take a gigabyte of memory to parse.
MAX_HEADER_BYTES = strict_json.HEADER.nbytes
_MOST_DIMENSIONS = 16

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

_AGAIN = "fetch the model again"


@dataclass(frozen=True, slots=True)
class Span:
    """The position of a tensor in a file.

    Attributes
    ----------
    path : Path
        The file.
    start, nbytes : int
        Offset from the start of the file, and size, in bytes.
    dtype : str
        In safetensors' names (``"BF16"``).
    shape : tuple of int
    """

    path: Path
    start: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """Sums over weight files.

    Attributes
    ----------
    sizes : collections.Counter
        Bytes of tensors by dtype, in safetensors' names (``"F16"``).
    tensors : int
        Number of tensors.
    header : int
        Bytes of the headers.
    """

    sizes: Counter[str]
    tensors: int
    header: int

    def __add__(self, other: Contents) -> Contents:
        """Return the sums of both."""
        sizes = Counter(self.sizes)
        sizes.update(other.sizes)
        return Contents(sizes, self.tensors + other.tensors, self.header + other.header)


def contents(path: Path, *, model: str, quick: bool = False) -> Contents:
    """Read a safetensors header and check it against the size of the file.

    Parameters
    ----------
    path : Path
        The file; its tensors are not read.
    model : str
        Name of the model, for the error.
    quick : bool
        For a list: a large header is refused.

    Returns
    -------
    Contents

    Raises
    ------
    SlowToReadError
    CheckpointError
        When the file is truncated, is not a safetensors file, or is inconsistent.
    """
    try:
        with strict_json.opened(path) as (file, size):
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if prefix == b"version ":
                raise _damaged(
                    path, model, "is only a Git LFS pointer", "run `git lfs pull` in its folder"
                )
            if len(prefix) < 8:
                raise _damaged(path, model, f"is cut short ({size} bytes)")
            if length > MAX_HEADER_BYTES:
                raise _damaged(path, model, "is not a safetensors file")
            if quick:
                strict_json.require_quick(length, model=model)
            if length > size - 8:
                raise _damaged(path, model, f"is cut short ({size} bytes, inside its header)")
            header = _parsed(file.read(length), path, model)
    except UnreadableFileError as error:
        raise _damaged(path, model, str(error), "look at the file and its permissions") from error
    sizes = _checked(header, size - 8 - length, path, model)
    return Contents(sizes, len(header) - ("__metadata__" in header), length)


def tensor_bytes(path: Path, *, model: str) -> Counter[str]:
    """Return the bytes of a file's tensors, by dtype. See `contents`."""
    return contents(path, model=model).sizes


def spans(path: Path) -> dict[str, Span]:
    """Return the position of each tensor, of a file that `tensor_bytes` has checked.

    Parameters
    ----------
    path : Path

    Raises
    ------
    UnreadableFileError
        The file has changed since the check.
    """
    with strict_json.opened(path) as (file, _):
        length = min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES)
        header = strict_json.parse(file.read(length), strict_json.HEADER)
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
        header = strict_json.parse(raw, strict_json.HEADER)
    except UnreadableFileError as error:
        raise _damaged(path, model, f"has a damaged header (it {error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, model, "has a damaged header")
    return header


def _checked(header: Mapping[str, Any], available: int, path: Path, model: str) -> Counter[str]:
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
    if needed > available:
        raise _damaged(path, model, f"is cut short ({needed - available} bytes are missing)")
    if needed < available:
        raise _damaged(
            path, model, f"is damaged ({available - needed} bytes more than its header says)"
        )
    return sizes


def _span(entry: Any, path: Path, model: str) -> tuple[int, int, str]:
    """Return the start, end and dtype of a tensor."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            bits = _BITS.get(dtype)
            named = bits is not None or (len(dtype) <= 16 and shown(dtype) == dtype)
            if 0 <= start <= end < 2**63 and named:
                elements = _elements(shape)
                whole = bits is None or elements is None or elements * bits == (end - start) * 8
                if elements is not None and whole:
                    return start, end, dtype
    raise _damaged(path, model, "has a damaged header")


def _elements(shape: list[Any]) -> int | None:
    """Return the number of elements; None for an invalid shape."""
    if len(shape) > _MOST_DIMENSIONS:
        return None
    elements = 1
    for n in shape:
        # Not isinstance: a bool is an int, too.
        if type(n) is not int or not 0 <= n < 2**63:
            return None
        elements *= n
    return elements


def _damaged(path: Path, model: str, what: str, todo: str = _AGAIN) -> CheckpointError:
    return CheckpointError(f"{model}: {shown(path.name)} {what}: {todo}.", model=model)
