"""How JPEG and GIF files mark their parts."""

from __future__ import annotations

import re

JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Within a scan FF is followed by 0 or a restart marker; fill bytes are FF again."""

JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers after which no length comes."""

JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a header that says width and height."""

GIF_BLOCK = re.compile(rb"[!,;]")
"""How a block of a GIF begins: an extension, an image, the end."""


def gif_colors(flags: int) -> int:
    """Return the bytes of the table of colors that these flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
