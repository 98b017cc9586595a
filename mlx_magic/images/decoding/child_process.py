"""Decodes in a child process, which is killed at a time limit or a cancel; HEIF and JPEG 2000.

Used for decoders that cannot be interrupted and hold the interpreter's lock (OpenJPEG), that decode
more than the header declares (libavif), or that write warnings to standard error (libtiff; its
warning handlers are global, and other code in this process may rely on them).

HEIC and HEIF are the photos of iPhones. Their decoder (libheif, by pillow-heif) is neither in
Pillow nor a pure Python package. It never runs in this process, where it could not be stopped:
sizes are read from the file's boxes before.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from mlx_magic.errors import ImageDecodeError
from mlx_magic.images.decoding.pixel_capacity import truncated
from mlx_magic.images.decoding.stoppable_file import DecodeDeadline
from mlx_magic.images.limits import check_pixels

_SCRIPT = Path(__file__).with_name("child_main.py")
_CHECK_SECONDS = 0.05
# Address space of Python and Pillow, without the image.
_PROGRAM_BYTES = 600_000_000


def decode_in_child(
    kind: str,
    data: bytes,
    watch: DecodeDeadline,
    *,
    seconds: int,
    memory: int,
    frame: int = 0,
    raw_mode: str = "",
    planes: Sequence[str] = (),
    packages: Sequence[str] = (),
) -> Image.Image | None:
    """Return a loaded image in the mode of Pillow's decoder; palette images as RGB or RGBA.

    Parameters
    ----------
    kind : str
        A format that `child_main` supports.
    data : bytes
        The whole file.
    watch : DecodeDeadline
    seconds : int
        Maximum CPU time.
    memory : int
        Maximum bytes, in addition to those of Python and Pillow.
    frame : int
        Index of the page.
    raw_mode : str
        Reads the file in this raw mode of Pillow instead of its own.
    planes : sequence of str
        The raw modes of the upper and lower bytes of its colors, and its own one, to find the range
        of all pages.
    packages : sequence of str
        Folders with the decoder's package, besides that of Pillow.

    Returns
    -------
    PIL.Image.Image or None
        None if Python is embedded in another program and cannot be started. Of a page with values
        wider than 8 bits, ``info["pages"]`` is the range of all pages that were read in time.

    Raises
    ------
    ImageDecodeError
        If it takes too much time or memory.
    Cancelled
        If the token of `watch` was cancelled; the process is killed.
    ValueError
        If it is damaged, with Pillow's message.
    """
    if not sys.executable:
        return None
    command = [
        sys.executable, "-I", str(_SCRIPT), kind, str(seconds), str(memory + _PROGRAM_BYTES),
        str(frame), raw_mode, ",".join(planes), str(Path(PIL.__file__).parents[1]), *packages,
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPJ_NUM_THREADS": "1"},
    ) as process:
        answers: list[Image.Image | dict[str, Any]] = []
        exchange = threading.Thread(target=_exchange, args=(process, data, answers), daemon=True)
        exchange.start()
        try:
            while exchange.is_alive():
                watch.checkpoint()
                exchange.join(_CHECK_SECONDS)
        finally:
            process.kill()
            exchange.join()
    answer = answers[0] if answers else {}
    if isinstance(answer, Image.Image):
        return answer
    if "error" in answer:
        raise ValueError(str(answer["error"]))
    raise ImageDecodeError(
        f"{watch.label} is a {kind} that takes more than {seconds} seconds or "
        f"{memory // 1_000_000} MB to decode: save it as a PNG or JPEG.",
        source=watch.label,
    )


def _exchange(
    process: subprocess.Popen[bytes], data: bytes, answers: list[Image.Image | dict[str, Any]]
) -> None:
    """Send the file and receive the image; a process that was killed leaves no result."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(data)
        process.stdin.close()
        head = json.loads(process.stdout.readline(10_000) or b"null")
        if not isinstance(head, dict) or "error" in head:
            answers.append(head or {})
            return
        width, height = head["size"]
        image = Image.new(head["mode"], (width, height))
        for top in range(0, height, head["rows"]):
            rows = min(head["rows"], height - top)
            size = int.from_bytes(process.stdout.read(8), "big")
            strip = Image.frombytes(head["mode"], (width, rows), process.stdout.read(size))
            image.paste(strip, (0, top))
        image.getexif()[0x0112] = head["orientation"]
        image.info.update(head["info"])
        answers.append(image)
    except (OSError, ValueError):
        return


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


_SIZ = b"\xff\x4f\xff\x51"
# Archive scans are often one tile of many megapixels; each value takes 4 bytes.
_MAX_MEMORY = 1_100_000_000
_JPEG2000_SECONDS = 2
_PIXELS_A_SECOND = 2_000_000
_MOST_TILES = 65_535
# The two markers of a tile: a tile of one color may have nothing else.
_TILE_BYTES = 14


def decode_jpeg2000(data: bytes, watch: DecodeDeadline) -> Image.Image:
    """Return an image in the mode of Pillow's decoder.

    Raises
    ------
    ImageDecodeError, ImageTooLargeError
        If it is damaged, takes too long, or would take too much memory according to its header.
    Cancelled
        If the token of `watch` was cancelled; the process is killed.
    ValueError, OSError
        If it is damaged, with Pillow's message.
    """
    pixels = _check(data, watch)
    seconds = _JPEG2000_SECONDS + pixels // _PIXELS_A_SECOND
    image = decode_in_child("JPEG 2000", data, watch, seconds=seconds, memory=_MAX_MEMORY)
    return Jpeg2KImageFile(io.BytesIO(data)) if image is None else image


def _check(data: bytes, watch: DecodeDeadline) -> int:
    """Check the codestream's header, not that of the container; return the number of pixels."""
    at = data.find(_SIZ)
    if at < 0:
        raise ValueError("no codestream")
    width, height, left, top, across, down, tile_left, tile_top = struct.unpack_from(
        ">8I", data, at + 8
    )
    (components,) = struct.unpack_from(">H", data, at + 40)
    width, height = width - left, height - top
    if width < 1 or height < 1 or across < 1 or down < 1 or components < 1:
        raise ValueError("its sizes are not valid")
    check_pixels((width, height), watch.label)
    tile = min(width, across) * min(height, down)
    tiles = -(-(width + left - tile_left) // across) * -(-(height + top - tile_top) // down)
    need = 4 * width * height + 4 * tile * components
    if need > _MAX_MEMORY or tiles > _MOST_TILES:
        raise ImageDecodeError(
            f"{watch.label} is a JPEG 2000 of {width}x{height} with {components} components in "
            f"{tiles} tiles, which takes more than {_MAX_MEMORY // 1_000_000} MB to decode: "
            "save it as a PNG or JPEG.",
            source=watch.label,
        )
    if len(data) - at < tiles * _TILE_BYTES:
        truncated(width, height, len(data) - at, tiles * _TILE_BYTES)
    return int(width * height)
