"""Decodes JPEG 2000 in a child process, after checking the header."""

from __future__ import annotations

import io
import struct

from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from mlx_magic.errors import ImageDecodeError
from mlx_magic.images.decoding.child_process import decode_in_child
from mlx_magic.images.decoding.pixel_capacity import truncated
from mlx_magic.images.decoding.stoppable_file import DecodeDeadline
from mlx_magic.images.limits import check_pixels

_SIZ = b"\xff\x4f\xff\x51"
# Archive scans are often one tile of many megapixels; each value takes 4 bytes.
_MAX_MEMORY = 1_100_000_000
_SECONDS = 2
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
    seconds = _SECONDS + pixels // _PIXELS_A_SECOND
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
