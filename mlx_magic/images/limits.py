"""Limits for images, and the errors for images that exceed them."""

from __future__ import annotations

from mlx_magic.errors import ImageTooLargeError
from mlx_magic.formatting import amount

MAX_PIXELS_DECODED = 64_000_000
"""Maximum pixels of an image that is decoded (an RGB copy takes 192 MB)."""

MAX_PIXELS_TOTAL = 256_000_000
"""Maximum pixels of all images of a request, after ``max_pixels``."""

MAX_FILE_BYTES = 200_000_000
"""Maximum bytes of a local file, data URI or bytes object."""

MAX_TAKEN_BYTES = 4_000_000_000
"""Maximum bytes that are read or copied of all images of a request, before they are decoded."""

MAX_IMAGES = 64
"""Maximum number of images of a request."""


def check_pixels(size: tuple[int, int], label: str) -> None:
    """Refuse an image that is too large, before it is decoded.

    Raises
    ------
    ImageTooLargeError
        If width times height is over `MAX_PIXELS_DECODED`.
    """
    pixels = size[0] * size[1]
    if pixels > MAX_PIXELS_DECODED:
        raise ImageTooLargeError(
            f"{label} is {size[0]}x{size[1]}, {pixels / 1e6:.0f} megapixels; the limit is "
            f"{MAX_PIXELS_DECODED // 1_000_000}. Make it smaller first.",
            source=label,
            size=pixels,
            limit=MAX_PIXELS_DECODED,
        )


def check_bytes(size: int, label: str, most: int | None = None) -> None:
    """Refuse a file or buffer that is too large, before it is read.

    Raises
    ------
    ImageTooLargeError
        If `size` is over `most`, or by default over `MAX_FILE_BYTES`.
    """
    limit = MAX_FILE_BYTES if most is None else most
    if size > limit:
        raise ImageTooLargeError(
            f"{label} has {amount(size)}; the limit is {amount(limit)}.",
            source=label,
            size=size,
            limit=limit,
        )
