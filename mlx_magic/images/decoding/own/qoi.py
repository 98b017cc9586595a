"""Decodes QOI in one tight loop: Pillow's decoder calls several functions for each pixel."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from PIL import Image

from mlx_magic.images.limits import check_pixels

if TYPE_CHECKING:
    from mlx_magic.images.decoding.stoppable_file import DecodeDeadline

_HEADER = 14
# Maximum pixels that one byte encodes.
_RUN = 62
_CHECK_INTERVAL = 1 << 16
_TRUNCATED = "image file is truncated"


def decode_qoi(data: bytes, watch: DecodeDeadline) -> Image.Image:
    """Return an RGB or RGBA image.

    Raises
    ------
    ImageTooLargeError
        If it has too many pixels.
    ValueError, struct.error
        If it is damaged or truncated.
    """
    width, height, bands = struct.unpack_from(">IIB", data, 4)
    check_pixels((width, height), watch.label)
    if not width * height:
        raise ValueError("it has no pixels")
    if width * height > _RUN * (len(data) - _HEADER):
        raise ValueError(_TRUNCATED)
    bands = 3 if bands == 3 else 4
    pixels = _pixels(data, width * height * bands, bands, watch)
    return Image.frombuffer("RGB" if bands == 3 else "RGBA", (width, height), pixels)


def _pixels(data: bytes, wanted: int, bands: int, watch: DecodeDeadline) -> bytearray:
    out = bytearray()
    seen = [b"\0\0\0\0"[:bands]] * 64
    alphas = [0] * 64
    red = green = blue = 0
    alpha, pixel = 255, b"\0\0\0\xff"[:bands]
    at, end, check_at = _HEADER, len(data), 0
    opaque = bands == 3
    try:
        while len(out) < wanted:
            if at >= check_at:
                watch.checkpoint()
                check_at = at + _CHECK_INTERVAL
            op = data[at]
            at += 1
            if op >= 0xC0 and op < 0xFE:  # run
                out += pixel * (op - 0xBF)
                continue
            if op < 0x40:  # index
                pixel, alpha = seen[op], alphas[op]
                red, green, blue = pixel[0], pixel[1], pixel[2]
            else:
                if op < 0x80:  # small difference
                    red = (red + (op >> 4 & 3) - 2) & 255
                    green = (green + (op >> 2 & 3) - 2) & 255
                    blue = (blue + (op & 3) - 2) & 255
                elif op < 0xC0:  # larger difference, relative to green
                    more, step = data[at], op - 0xA0
                    at += 1
                    red = (red + step + (more >> 4) - 8) & 255
                    green = (green + step) & 255
                    blue = (blue + step + (more & 15) - 8) & 255
                elif op == 0xFE:
                    red, green, blue = data[at : at + 3]
                    at += 3
                else:
                    red, green, blue, alpha = data[at : at + 4]
                    at += 4
                pixel = bytes((red, green, blue)) if opaque else bytes((red, green, blue, alpha))
            key = (red * 3 + green * 5 + blue * 7 + alpha * 11) & 63
            seen[key], alphas[key] = pixel, alpha
            out += pixel
    except IndexError:
        raise ValueError(_TRUNCATED) from None
    if at > end:
        raise ValueError(_TRUNCATED)
    del out[wanted:]
    return out
