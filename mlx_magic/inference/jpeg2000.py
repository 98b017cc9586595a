"""JPEG 2000, decoded in a process of its own that ends when its time is up or is cancelled."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import PIL
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from mlx_magic.errors import ImageDecodeError
from mlx_magic.inference.image_limits import check_pixels
from mlx_magic.inference.watched import Watch

_SCRIPT = Path(__file__).with_name("jpeg2000_apart.py")
_SIZ = b"\xff\x4f\xff\x51"
_LOOK_SECONDS = 0.05
# Scans of archives are often one tile of many megapixels, each value of which takes 4 bytes.
_MAX_MEMORY = 1_100_000_000
_SECONDS = 2
_PIXELS_A_SECOND = 2_000_000
# Beside the picture: Python and Pillow themselves, as addresses.
_PROGRAM_BYTES = 600_000_000
_MOST_TILES = 65_535


def decode_jpeg2000(data: bytes, watch: Watch) -> Image.Image:
    """Return a loaded image, in the mode that Pillow reads it in.

    Raises
    ------
    ImageDecodeError, ImageTooLargeError
        If it is damaged, takes too long, or too much memory by what its header says.
    Cancelled
        If the token of `watch` was thrown: the process is killed.
    ValueError, OSError
        If it is damaged: as Pillow says it.
    """
    pixels = _check(data, watch)
    if not sys.executable:  # Python inside of another program: there is nothing to start
        return Jpeg2KImageFile(io.BytesIO(data))
    seconds = _SECONDS + pixels // _PIXELS_A_SECOND

    command = [
        sys.executable, "-I", str(_SCRIPT), str(seconds),
        str(_MAX_MEMORY + _PROGRAM_BYTES), str(Path(PIL.__file__).parents[1]),
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPJ_NUM_THREADS": "1"},
    ) as process:
        answers: list[Image.Image | dict[str, Any]] = []
        talk = threading.Thread(target=_talk, args=(process, data, answers), daemon=True)
        talk.start()
        try:
            while talk.is_alive():
                watch.checkpoint()
                talk.join(_LOOK_SECONDS)
        finally:
            process.kill()
            talk.join()
    answer = answers[0] if answers else {}
    if isinstance(answer, Image.Image):
        return answer
    if "error" in answer:
        raise ValueError(str(answer["error"]))
    raise ImageDecodeError(
        f"{watch.label} is a JPEG 2000 that takes more than {seconds} seconds or "
        f"{_MAX_MEMORY // 1_000_000} MB to decode: save it as a PNG or JPEG.",
        source=watch.label,
    )


def _talk(
    process: subprocess.Popen[bytes], data: bytes, answers: list[Image.Image | dict[str, Any]]
) -> None:
    """Send the file and take what comes; a process that was killed leaves no answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(data)
        process.stdin.close()
        head = json.loads(process.stdout.readline(10_000) or b"null")
        if not isinstance(head, dict) or "error" in head:
            answers.append(head or {})
            return
        image = Image.frombytes(head["mode"], tuple(head["size"]), process.stdout.read())
        image.getexif()[0x0112] = head["orientation"]
        answers.append(image)
    except (OSError, ValueError):
        return


def _check(data: bytes, watch: Watch) -> int:
    """Refuse by the header of the codestream, whatever the file around it says; return pixels."""
    at = data.find(_SIZ)
    if at < 0:
        raise ValueError("no codestream")
    width, height, left, top, across, down, tile_left, tile_top = struct.unpack_from(
        ">8I", data, at + 8
    )
    (components,) = struct.unpack_from(">H", data, at + 40)
    width, height = width - left, height - top
    if width < 1 or height < 1 or across < 1 or down < 1 or components < 1:
        raise ValueError("sizes that make no picture")
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
    return int(width * height)
