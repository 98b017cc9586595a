"""Markers of the parts of JPEG and GIF files."""

from __future__ import annotations

import re

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
