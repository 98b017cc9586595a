"""HEIC and HEIF, the photos of iPhones: decoded by pillow-heif in a child process.

Their decoder (libheif) is neither in Pillow nor a pure Python package. It never runs in this
process, where it could not be stopped: sizes are read from the file's boxes before.
"""

from __future__ import annotations

import importlib.util
import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from mlx_magic.errors import ImageDecodeError
from mlx_magic.images.decoding.child_process import decode_in_child
from mlx_magic.images.decoding.stoppable_file import DecodeDeadline
from mlx_magic.images.limits import check_pixels

INSTALL = "pip install pillow-heif"
"""The command that installs the decoder where it is missing."""

_SECONDS = 10
_MEMORY = 1_000_000_000
_MOST_BOXES = 100_000
# Boxes that contain other boxes, and the bytes before the first of these.
_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0}


def decode_heif(data: bytes, watch: DecodeDeadline) -> Image.Image:
    """Return the main image of a file, upright.

    Raises
    ------
    ImageDecodeError, ImageTooLargeError
        If pillow-heif is not installed, the file is damaged, or takes too much time or memory.
    Cancelled
        If the token of `watch` was cancelled; the process is killed.
    ValueError
        If it is damaged, with the decoder's message.
    """
    registered = _of_other_package()
    if registered is not None:
        return registered(data)
    spec = importlib.util.find_spec("pillow_heif")
    if spec is None or spec.origin is None:
        raise ImageDecodeError(
            f"{watch.label} is a HEIC/HEIF image, which needs one more package: {INSTALL}",
            source=watch.label,
        )
    for size in _sizes(data):
        check_pixels(size, watch.label)
    folder = str(Path(spec.origin).parents[1])
    image = decode_in_child(
        "HEIF", data, watch, seconds=_SECONDS, memory=_MEMORY, packages=(folder,)
    )
    if image is None:
        raise ImageDecodeError(
            f"{watch.label} is a HEIC/HEIF image, for which Python must be started, and this "
            "program has none: save it as a JPEG.",
            source=watch.label,
        )
    return image


def _of_other_package() -> Callable[[bytes], Image.Image] | None:
    """Return the opener that a user has registered with Pillow, unless it is pillow-heif's."""
    opener, _ = Image.OPEN.get("HEIF", (None, None))
    if opener is None or getattr(opener, "__module__", "").startswith("pillow_heif"):
        return None

    return lambda data: opener(io.BytesIO(data), "")


def _sizes(data: bytes) -> list[tuple[int, int]]:
    """Return the sizes that the file declares for its images and their tiles.

    Raises
    ------
    ValueError
        If it declares none.
    """
    found = [
        struct.unpack_from(">II", data, at + 4)
        for name, at, end in _boxes(data, 0, len(data))
        if name == b"ispe" and end - at >= 12
    ]
    if not found:
        raise ValueError("it does not say the size of its image")
    return [(width, height) for width, height in found]


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the content of each box, those inside of others included."""
    waiting, seen = [(start, end)], 0
    while waiting:
        at, end = waiting.pop()
        while at + 8 <= end:
            seen += 1
            if seen > _MOST_BOXES:
                raise ValueError("it has too many boxes")
            length, name = struct.unpack_from(">I4s", data, at)
            body = at + 8
            if length == 1 and at + 16 <= end:
                (length,) = struct.unpack_from(">Q", data, body)
                body += 8
            stop = end if length == 0 else at + length
            if stop <= at or stop < body:
                raise ValueError("its boxes are damaged")
            stop = min(stop, end)
            yield name, body, stop
            if name in _CONTAINERS:
                waiting.append((body + _CONTAINERS[name], stop))
            at = stop
