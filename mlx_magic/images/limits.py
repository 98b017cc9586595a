"""How much picture is too much, and how sizes and names are written in messages."""

from __future__ import annotations

from mlx_magic.errors import ImageTooLargeError

MAX_PIXELS_DECODED = 64_000_000
"""Largest picture that is decoded, in pixels (an RGB copy of it takes 192 MB)."""

MAX_PIXELS_TOTAL = 256_000_000
"""All pictures of one request together, in pixels, after ``max_pixels``."""

MAX_FILE_BYTES = 200_000_000
"""Largest local file, data URI or bytes object."""

MAX_IMAGES = 64
"""Most pictures of one request."""

_LABEL_LENGTH = 80


def check_pixels(size: tuple[int, int], label: str) -> None:
    """Refuse a picture by its size, before it is decoded.

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


def check_bytes(size: int, label: str) -> None:
    """Refuse a file or buffer by its length, before it is read.

    Raises
    ------
    ImageTooLargeError
        If `size` is over `MAX_FILE_BYTES`.
    """
    if size > MAX_FILE_BYTES:
        raise ImageTooLargeError(
            f"{label} has {megabytes(size)}; the limit is {megabytes(MAX_FILE_BYTES)}.",
            source=label,
            size=size,
            limit=MAX_FILE_BYTES,
        )


def megabytes(size: int) -> str:
    """Return a number of bytes as text, in the unit that reads best."""
    if size < 1_000:
        return f"{size} bytes"
    return f"{size / 1_000:.0f} KB" if size < 1_000_000 else f"{size / 1_000_000:.0f} MB"


def shorten(text: str, length: int = _LABEL_LENGTH) -> str:
    """Return `text` on one line, its middle left out where it is too long.

    What could break a line or rearrange it (controls, bidirectional marks) becomes ``?``.
    """
    line = "".join(char if char.isprintable() else "?" for char in text)
    if len(line) <= length:
        return line
    head = (length - 1) // 2
    return f"{line[:head]}…{line[len(line) - (length - 1 - head) :]}"


def reason(error: BaseException) -> str:
    """Return why something failed, as one short line."""
    # An OSError's own text repeats its number and the whole path.
    text = getattr(error, "strerror", None) or str(error)
    return shorten(text.strip().rstrip(".") or type(error).__name__, 120)
