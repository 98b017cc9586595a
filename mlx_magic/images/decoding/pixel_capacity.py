"""Checks whether a file has enough bytes for the pixels that its header declares.

Pillow allocates all pixels before it decodes the first, and fills in the missing part of a
truncated JPEG. So the minimum number of bytes for the pixels is compared with the size of the data.
The minimum is that of the format, not of usual encoders: no complete file is refused. There is no
useful minimum for lossless WebP, AVIF and arithmetic JPEG, in which an image of one color takes
almost no bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NoReturn

from mlx_magic.images.decoding.file_structure import (
    GIF_BLOCK,
    JPEG_BARE,
    JPEG_FRAMES,
    JPEG_MARKER,
    gif_colors,
)
from mlx_magic.images.decoding.tiff_structure import Page
from mlx_magic.images.limits import MAX_PIXELS_DECODED

# Deflate: a code of at least two bits encodes at most 258 bytes.
_DEFLATE = 1032
# LZW: a code of at most 12 bits encodes less than 4096 values.
_LZW = 4096 * 8 // 12 + 1
# Maximum bytes that one compressed byte encodes, by the number of the compression.
_TIFF_BYTES = {
    5: _LZW,
    8: _DEFLATE,
    32946: _DEFLATE,
    32773: 64,  # PackBits: two bytes for 128
    34925: 10_000,  # LZMA: a match of 273 bytes takes 14 decisions of 0.022 bits
    50000: 32_768,  # Zstandard: a block of 128 KB takes four bytes
}
# Maximum pixels that one compressed byte encodes.
_TIFF_PIXELS = {
    6: 512,
    7: 512,  # JPEG: a block of 64 takes a bit in the first scan
    32809: 64,
    34676: 64,
    34677: 64,
}
_TIFF_FAX = frozenset({2, 3, 4})
_TIFF_JPEG = 7
_MAX_CHUNKS = 200_000
_MAX_SEGMENTS = 10_000
# The end of a scan's data. Other bytes after FF are damage, which decoders skip.
_END = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
# Minimum bits of a block: one bit for each of its two parts, for its first scan, or for a
# sample.
_JPEG_BITS = {0xC0: 2, 0xC1: 2, 0xC2: 1, 0xC3: 1}
_LOSSLESS = 0xC3
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
           (0, 1, 1, 2))  # fmt: skip


def check_capacity(kind: str, data: bytes) -> None:
    """Refuse a file that has too few bytes for its pixels.

    Parameters
    ----------
    kind : str
        From `image_format`.
    data : bytes
        The whole file.

    Raises
    ------
    ValueError
        If it is truncated.
    """
    check = _CHECKS.get(kind)
    if check is None:
        return
    try:
        check(data)
    except (struct.error, IndexError):
        return  # a damaged header, for which the decoder raises an error


def truncated(width: int, height: int, have: int, need: int) -> NoReturn:
    """Raise the error for a file that has too few bytes for its pixels."""
    raise ValueError(
        f"image file is truncated: {width}x{height} pixels take {need} bytes or more, not {have}"
    )


def _compare(width: int, height: int, have: int, need: int) -> None:
    # Larger images are refused for their size, with a clearer message.
    if have < need and width * height <= MAX_PIXELS_DECODED:
        truncated(width, height, have, need)


def _png(data: bytes) -> None:
    at, have, header = 8, 0, b""
    for _ in range(_MAX_CHUNKS):
        length, name = struct.unpack_from(">I4s", data, at)
        if name in (b"IDAT", b"fdAT", b"DDAT"):
            have += min(length, len(data) - at - 8)
        elif have or name == b"IEND":
            break
        elif name == b"IHDR":
            header = data[at + 8 : at + 8 + length]
        at += 12 + length
        if at + 8 > len(data):
            break
    else:
        return  # too many chunks to check
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", header)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(color, 1)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    raw = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            raw += rows * (1 + -(-columns * bits // 8))
    _compare(width, height, have, -(-raw // _DEFLATE))


def _jpeg(data: bytes, start: int = 0, end: int | None = None) -> None:
    """Require for each component a scan with enough bytes for its blocks."""
    end = len(data) if end is None else min(end, len(data))
    at = start + 2
    marker = width = height = 0
    factors: dict[int, tuple[int, int]] = {}
    missing: set[int] = set()
    for _ in range(_MAX_SEGMENTS):
        found = JPEG_MARKER.search(data, at, end)
        if found is None or data[found.start() + 1] == 0xD9:
            break
        this, at = data[found.start() + 1], found.end()
        if this in JPEG_BARE:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if this in JPEG_FRAMES:
            marker, height, width = this, *struct.unpack_from(">HH", data, at + 3)
            component_offsets = range(at + 8, at + 8 + 3 * data[at + 7], 3)
            factors = {
                data[each]: (data[each + 1] >> 4, data[each + 1] & 15) for each in component_offsets
            }
            missing = set(factors)
        if this != 0xDA:
            at += max(length, 2)
            continue
        if marker not in _JPEG_BITS:
            return
        scanned = {data[each] for each in range(at + 3, at + 3 + 2 * data[at + 2], 2)}
        first = marker != 0xC2 or data[at + 3 + 2 * data[at + 2]] == 0
        at += max(length, 2)
        if not first or not scanned & missing or not scanned <= set(factors):
            continue
        size = _blocks(width, height, factors, scanned, lossless=marker == _LOSSLESS)
        need = -(-size * _JPEG_BITS[marker] // 8)
        ended = _END.search(data, at, min(end, at + need + 1))
        _compare(width, height, (ended.start() if ended else end) - at, need)
        missing -= scanned
        if not missing:
            return
    else:
        return  # too many segments to check
    if missing and marker in _JPEG_BITS:
        _compare(width, height, 0, 1)


def _blocks(
    width: int,
    height: int,
    factors: dict[int, tuple[int, int]],
    scanned: set[int],
    *,
    lossless: bool,
) -> int:
    """Return the number of blocks in a scan; of samples if it is lossless."""
    widest = max(across for across, _ in factors.values()) or 1
    highest = max(down for _, down in factors.values()) or 1
    side = 1 if lossless else 8
    if len(scanned) == 1:
        ((across, down),) = (factors[each] for each in scanned)
        columns, rows = -(-width * across // widest), -(-height * down // highest)
        return -(-columns // side) * -(-rows // side)
    units = -(-width // (side * widest)) * -(-height // (side * highest))
    return units * sum(factors[each][0] * factors[each][1] for each in scanned)


def _gif(data: bytes) -> None:
    at = 13 + gif_colors(data[10])
    for _ in range(_MAX_CHUNKS):
        found = GIF_BLOCK.search(data, at)
        if found is None or data[found.start()] == 0x3B:
            return
        at, kind = found.start(), data[found.start()]
        if kind == 0x2C:
            break
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    else:
        return
    width, height, flags = struct.unpack_from("<HHB", data, at + 5)
    at += 11 + gif_colors(flags)
    need, have = -(-_lzw_bits(width * height) // 8), 0
    while have < need and at < len(data) and data[at]:
        have += min(data[at], len(data) - at - 1)
        at += data[at] + 1
    _compare(width, height, have, need)


def _lzw_bits(values: int) -> int:
    """Return the minimum bits of LZW data: the n-th code encodes at most n values."""
    bits = 0
    for code in range(1, 4093):
        if values <= 0:
            return bits
        values -= code
        bits += min(12, max(2, (code + 1).bit_length()))
    return bits + max(0, -(-values // 4096)) * 12


def _tiff(data: bytes) -> None:
    page = Page.first(data)
    width, height = page.size
    if min(width, height) < 1:
        return
    if page.compression == 1:
        _raw_tiff(page, data)
        return
    parts = list(page.parts(len(data)))
    have = sum(size for _, size in parts)
    if page.compression in _TIFF_FAX:
        need = -(-height // 8)
    elif page.compression in _TIFF_BYTES:
        need = -(-width * height * page.bits // 8 // _TIFF_BYTES[page.compression])
    elif page.compression in _TIFF_PIXELS:
        need = -(-width * height // _TIFF_PIXELS[page.compression])
        if page.compression == _TIFF_JPEG:
            for offset, size in parts:
                _jpeg(data, offset, offset + size)
    else:
        return
    _compare(width, height, have, need)


def _raw_tiff(page: Page, data: bytes) -> None:
    """Check each strip or tile: a decoder would leave missing ones black."""
    width, height = page.size
    across, down = page.part_size
    if min(across, down) < 1:
        raise ValueError("its strips or tiles have no pixels")
    columns, rows = -(-width // across), -(-height // down)
    offsets = page.offsets
    if columns * rows == 1 and not page.planar:
        offsets = offsets[-1:]
    if len(offsets) < columns * rows:
        raise ValueError(
            f"image file is truncated: {len(offsets)} of its {columns * rows} strips or tiles"
        )
    bits = page.bits_of_plane if page.planar else page.bits
    for index, offset in enumerate(offsets[: columns * rows]):
        row, column = divmod(index, columns)
        wide = min(across, width - column * across)
        stride = -(-wide * bits // 8) if wide == across else across * bits // 8
        high = min(down, height - row * down)
        need = offset + stride * (high - 1) + -(-wide * bits // 8)
        if need > len(data):
            _compare(width, height, len(data), need)


def _bmp(data: bytes) -> None:
    offset, header = struct.unpack_from("<II", data, 10)
    compression = 0
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    width, height = abs(width), abs(height)
    have = max(0, len(data) - (offset or 14 + header))
    if compression in (1, 2):  # four bytes may skip 255 rows
        _compare(width, height, have, 4 * (width * height // (256 * (width + 1))))
    elif width and height:
        row = (width * bits + 31) // 32 * 4
        _compare(width, height, have, row * (height - 1) + -(-width * bits // 8))


def _webp(data: bytes) -> None:
    at = 12
    for _ in range(_MAX_CHUNKS):
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"ANMF":
            at += 8 + 16
            continue
        if name == b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, at + 14))
            squares = -(-width // 16) * -(-height // 16)
            # The prediction mode of a macroblock alone takes three bits.
            _compare(width, height, min(length, len(data) - at - 8), squares * 2 // 8)
        if name in (b"VP8 ", b"VP8L"):
            return
        at += 8 + length + (length & 1)


_CHECKS: dict[str, Callable[[bytes], None]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "GIF": _gif,
    "TIFF": _tiff,
    "BMP": _bmp,
    "WebP": _webp,
}
