"""Checks the structure of an image file before Pillow decodes it.

Pillow limits only the number of pixels. Its time and memory also depend on the scans, directories,
pages and tiles of a file, which are counted here without decoding.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from mlx_magic.errors import ImageDecodeError, ImageTooLargeError
from mlx_magic.images.decoding.stoppable_file import DecodeDeadline
from mlx_magic.images.decoding.tiff_structure import (
    SIZE_TAGS,
    TAG_BYTE_COUNTS,
    TAG_OFFSETS,
    TAG_TILE_LENGTH,
    TAG_TILE_WIDTH,
    VALUE_BYTES,
    Page,
    Tiff,
)
from mlx_magic.images.limits import check_pixels

JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker. Within a scan FF is followed by 0 or a restart marker; fill bytes are FF."""

JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""

JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frame headers, which contain width and height."""

GIF_BLOCK = re.compile(rb"[!,;]")
"""First byte of a GIF block: an extension, an image, the end."""


def gif_colors(flags: int) -> int:
    """Return the size of the color table, in bytes, from the flags."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


MAX_SCANS = 100
"""Maximum scans of a JPEG; encoders make about ten. Each scan is a pass over the image."""

MAX_MEMORY = 500_000_000
"""Maximum bytes of decoding, if they can be computed from the header."""

# Measured memory of the decoders, including the image.
_BYTES_A_PIXEL = {"WebP": 16, "AVIF": 9}

MAX_COUNTED = 10_000
"""Maximum pages or frames that are counted."""

# A segment has up to 64 KB: the largest allowed file of comments has some thousands.
_MAX_SEGMENTS = 10_000
_MAX_BLOCKS = 1_000_000
_MAX_COMMENTS = 10_000
_MAX_TAGS = 1_000
_MAX_VALUES = 300_000
_MAX_FRACTIONS = 10_000
_SOS = b"\xff\xda"
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})


@dataclass(frozen=True, slots=True)
class Count:
    """The number of pages or frames: `count`, or more than that."""

    count: int
    more: bool = False

    def __str__(self) -> str:
        return f"more than {self.count}" if self.more else str(self.count)


def check_structure(kind: str, data: bytes, watch: DecodeDeadline) -> Count | None:
    """Refuse a file whose structure takes far more time or memory than its pixels.

    Parameters
    ----------
    kind : str
        From `image_format`.
    data : bytes
        The whole file.
    watch : DecodeDeadline

    Returns
    -------
    Count or None
        Frames of a GIF or pages of a TIFF; None for other formats.

    Raises
    ------
    ImageDecodeError
        If it has too many or inconsistent parts.
    ValueError
        If it is truncated or damaged.
    """
    check = _CHECKS.get(kind)
    try:
        return None if check is None else check(data, watch)
    except (struct.error, IndexError) as error:
        raise ValueError("it ends too early") from error


def check_memory(kind: str, size: tuple[int, int], label: str) -> None:
    """Refuse an image whose decoder would take too much memory, before it is decoded.

    Raises
    ------
    ImageTooLargeError
    """
    pixels = size[0] * size[1]
    most = MAX_MEMORY // _BYTES_A_PIXEL.get(kind, 1)
    if pixels > most:
        raise ImageTooLargeError(
            f"{label} has {pixels / 1e6:.0f} megapixels, which as {kind} takes more than "
            f"{MAX_MEMORY // 1_000_000} MB to decode: save it as a PNG or JPEG, or smaller.",
            source=label,
            size=pixels,
            limit=most,
        )


def _refuse(watch: DecodeDeadline, why: str) -> NoReturn:
    raise ImageDecodeError(f"{watch.label} {why}.", source=watch.label)


# JPEG


@dataclass(slots=True)
class _Frame:
    """The frame header of a JPEG, with the memory of its coefficients."""

    progressive: bool
    pixels: int
    components: int
    coefficients: int

    @classmethod
    def read(cls, marker: int, body: bytes) -> _Frame:
        _, height, width, count = struct.unpack_from(">BHHB", body)
        factors = [(body[at] >> 4, body[at] & 15) for at in range(7, 6 + 3 * count, 3)]
        widest = max((across for across, _ in factors), default=1) or 1
        highest = max((down for _, down in factors), default=1) or 1
        part = sum(across * down for across, down in factors) / (widest * highest)
        pixels = width * height
        return cls(marker in _PROGRESSIVE, pixels, count, int(pixels * part * 2))


def _check_jpeg(data: bytes, watch: DecodeDeadline) -> None:
    frame: _Frame | None = None
    at, segments = 2, 0
    while found := JPEG_MARKER.search(data, at):
        segments += 1
        if segments > _MAX_SEGMENTS:
            _refuse(watch, "is a JPEG made of too many small pieces: save it again")
        marker, at = data[found.start() + 1], found.end()
        if marker in JPEG_BARE:
            continue
        if marker == 0xD9:
            return
        length = int.from_bytes(data[at : at + 2], "big")
        if marker in JPEG_FRAMES:
            frame = _Frame.read(marker, data[at + 2 : at + length])
        if marker == 0xDA:
            break
        at += max(length, 2)
    else:
        return
    if frame is None or not (
        frame.progressive or data[at + 2 : at + 3] != bytes([frame.components])
    ):
        return  # one scan, decoded in a single pass
    if frame.coefficients + 4 * frame.pixels > MAX_MEMORY:
        _refuse(
            watch,
            f"is a progressive JPEG of {frame.pixels / 1e6:.0f} megapixels, which takes more than "
            f"{MAX_MEMORY // 1_000_000} MB to decode: save it as a plain JPEG, or smaller",
        )
    # The quick count includes markers in comments and after the image; it selects suspicious files.
    if data.count(_SOS, at) >= MAX_SCANS and _scans(data, at, watch) > MAX_SCANS:
        _refuse(watch, f"is a JPEG of more than {MAX_SCANS} scans: save it again, as a plain JPEG")


def _scans(data: bytes, at: int, watch: DecodeDeadline) -> int:
    """Count the scans, from the first one, whose length is at `at`."""
    count = 1
    at += int.from_bytes(data[at : at + 2], "big")
    while (found := JPEG_MARKER.search(data, at)) and count <= MAX_SCANS:
        watch.checkpoint()
        marker, at = data[found.start() + 1], found.end()
        if marker in JPEG_BARE:
            continue
        if marker == 0xD9:
            break
        count += marker == 0xDA
        at += max(int.from_bytes(data[at : at + 2], "big"), 2)
    return count


# GIF


def _count_gif(data: bytes, watch: DecodeDeadline) -> Count:
    at = 13 + gif_colors(data[10])
    frames = blocks = comments = 0
    while found := GIF_BLOCK.search(data, at):
        at, kind = found.end(), data[found.start()]
        if kind == 0x3B:
            break
        if kind == 0x21:
            comments += data[at : at + 1] == b"\xfe"
            at += 1
        else:
            flags = data[at + 8 : at + 9]
            if not flags:
                break
            frames += 1
            if frames > MAX_COUNTED:
                return Count(MAX_COUNTED, more=True)
            at += 10 + gif_colors(flags[0])
        begun = blocks
        while at < len(data) and data[at]:
            at += data[at] + 1
            blocks += 1
            if blocks > _MAX_BLOCKS:
                if not frames:
                    _refuse(watch, "is a GIF of many blocks before its first frame")
                return Count(frames, more=True)
        if kind == 0x21 and not frames and blocks - begun > _MAX_COMMENTS:
            _refuse(watch, "is a GIF with more than 1 MB of extensions before its first frame")
        at += 1
        if comments > _MAX_COMMENTS and not frames:
            _refuse(watch, f"is a GIF of more than {_MAX_COMMENTS} comments")
    return Count(frames)


# TIFF


_JPEG_COMPRESSIONS = (6, 7)
# Blank tiles may share their bytes. More sharing makes decoders read the same bytes many times.
_SHARED = 8
_SHARED_BYTES = 64_000_000


def _count_tiff(data: bytes, watch: DecodeDeadline) -> Count:
    tiff = Tiff.of(data)
    at = tiff.first(data)
    _check_tags(tiff, data, at, watch)
    _check_page(Page.first(data), data, watch)
    seen: set[int] = set()
    while at and at not in seen:
        if len(seen) == MAX_COUNTED:
            return Count(MAX_COUNTED, more=True)
        seen.add(at)
        _, _, at = tiff.directory(data, at)
    return Count(len(seen))


def _check_tags(tiff: Tiff, data: bytes, at: int, watch: DecodeDeadline) -> None:
    tags, first, _ = tiff.directory(data, at)
    if tags > _MAX_TAGS:
        _refuse(watch, f"is a TIFF whose first page has {tags} tags, more than {_MAX_TAGS}")
    seen: dict[int, bytes] = {}
    for start in range(first, first + tags * tiff.tag_bytes, tiff.tag_bytes):
        tag, kind, count = tiff.tag(data, start)
        most = _MAX_FRACTIONS if kind in (5, 10) else _MAX_VALUES
        if count > most and (VALUE_BYTES.get(kind, 1) > 1 or tag in SIZE_TAGS):
            _refuse(watch, f"is a TIFF whose tag {tag} has {count} values")
        written = data[start : start + tiff.tag_bytes]
        # Of duplicates, Pillow uses the last and libtiff the first.
        if seen.setdefault(tag, written) != written and tag in SIZE_TAGS:
            _refuse(watch, f"is a TIFF that has the tag {tag} twice: save it again")


def _check_page(page: Page, data: bytes, watch: DecodeDeadline) -> None:
    check_pixels(page.size, watch.label)
    tile = page.number(TAG_TILE_WIDTH) * page.number(TAG_TILE_LENGTH)
    if tile > max(4 * page.size[0] * page.size[1], 4_000_000):
        _refuse(watch, "is a TIFF whose tiles are far larger than the image")
    for offsets, counts in zip(TAG_OFFSETS, TAG_BYTE_COUNTS, strict=True):
        sizes = page.tags.get(counts, ())
        if sum(sizes) > _SHARED * len(data) + _SHARED_BYTES:
            _refuse(watch, "is a TIFF whose parts overlap")
        if page.compression not in _JPEG_COMPRESSIONS:
            continue
        for offset, size in zip(page.tags.get(offsets, ()), sizes, strict=False):
            watch.checkpoint()
            if data.count(_SOS, offset, offset + size) > MAX_SCANS:
                _refuse(watch, f"is a TIFF with a JPEG of more than {MAX_SCANS} scans in it")


_CHECKS: dict[str, Callable[[bytes, DecodeDeadline], Count | None]] = {
    "JPEG": _check_jpeg,
    "GIF": _count_gif,
    "TIFF": _count_tiff,
}
