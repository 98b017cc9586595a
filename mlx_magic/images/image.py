"""`ImageInput`: upright RGB pixels for a model, with their source and a thumbnail."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_magic.argument_checks import plain, short_repr
from mlx_magic.errors import RequestError
from mlx_magic.images.stored import Encoded, StoredPixels, shrink

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL_SIDE = 256
_JPEG_QUALITY = 80
_DIGEST_ROWS = 512


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small encoded copy for display.

    Attributes
    ----------
    data : bytes
        The encoded image.
    mime : str
        ``"image/png"`` or ``"image/jpeg"``.
    width, height : int
        Pixels.
    """

    data: bytes
    mime: str
    width: int
    height: int


class ImageInput:
    """One image of a request. It cannot be changed; treat `pixels` as read-only.

    It keeps the file that the image came from, or else its pixels compressed losslessly, and
    decodes them when they are used.

    Parameters
    ----------
    pixels : PIL.Image.Image or StoredPixels
        RGB and upright.
    source, original_size, digest, note
        See the attributes.
    normalized : bool, optional
        Whether its numbers became levels with `normalize`; None if it makes no difference.

    Attributes
    ----------
    source : str
        The name given by the user, shortened for display.
    original_size : tuple of int
        Width and height in pixels, upright, before ``max_pixels``.
    digest : str
        SHA-256 (hex) over mode, size and pixel bytes.
    note : str or None
        Conversions for the user to know (``"first of 12 frames"``), joined by ``"; "``.
    """

    __slots__ = (
        "__weakref__", "_thumbnails", "digest", "normalized", "note", "original_size", "source",
        "stored",
    )  # fmt: skip

    source: str
    original_size: tuple[int, int]
    digest: str
    note: str | None
    normalized: bool | None
    stored: StoredPixels
    _thumbnails: dict[int, Thumbnail]

    def __init__(
        self,
        pixels: Image.Image | StoredPixels,
        source: str,
        original_size: tuple[int, int],
        digest: str,
        note: str | None = None,
        *,
        normalized: bool | None = None,
    ) -> None:
        stored = pixels if isinstance(pixels, StoredPixels) else StoredPixels(pixels)
        # Filled on demand. Two threads may compute the same entry: the results are equal.
        thumbnails: dict[int, Thumbnail] = {}
        self.__setstate__(
            {
                "source": source,
                "original_size": original_size,
                "digest": digest,
                "note": note,
                "normalized": normalized,
                "stored": stored,
                "_thumbnails": thumbnails,
            }
        )

    @property
    def pixels(self) -> Image.Image:
        """RGB and upright, exactly what the model is given; decoded now if needed."""
        return self.stored.pixels

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of `pixels`."""
        return self.stored.size

    def __repr__(self) -> str:
        width, height = self.size
        return f"<ImageInput {self.source!r} {width}x{height}>"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"ImageInput cannot be changed: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"ImageInput cannot be changed: {name}")

    def __getstate__(self) -> dict[str, Any]:
        names = [name for name in self.__slots__ if name != "__weakref__"]
        state = {name: getattr(self, name) for name in names}
        return {**state, "_thumbnails": dict(self._thumbnails)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        # Earlier releases pickled the pixels.
        if (pixels := state.pop("pixels", None)) is not None:
            state = {"normalized": None, "stored": StoredPixels(pixels), **state}
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def sharing(self, stored: StoredPixels) -> ImageInput:
        """Return the same image with the pixels of an equal one."""
        state = {**self.__getstate__(), "stored": stored, "_thumbnails": self._thumbnails}
        shared = ImageInput.__new__(ImageInput)
        shared.__setstate__(state)
        return shared

    def thumbnail(self, max_side: int = THUMBNAIL_SIDE) -> Thumbnail:
        """Return a copy that fits into a square of `max_side` pixels; it is not enlarged.

        It is a PNG, unless the JPEG (quality 80) is smaller. The bytes depend only on the pixels
        and on the version of Pillow.

        Raises
        ------
        RequestError
            If `max_side` is not an int of 1 or more.
        """
        side = _whole_positive("max_side", max_side)
        if side not in self._thumbnails:
            self._thumbnails[side] = _encode_thumbnail(self.pixels, side)
        return self._thumbnails[side]


def make_image_input(
    pixels: Image.Image,
    source: str,
    *,
    original_size: tuple[int, int] | None = None,
    notes: Iterable[str] = (),
    max_pixels: int | None = None,
    encoded: Encoded | None = None,
    normalized: bool | None = None,
) -> ImageInput:
    """Build an `ImageInput` from RGB pixels, scaled down to `max_pixels` if needed.

    Parameters
    ----------
    pixels : PIL.Image.Image
        RGB, upright; not copied unless scaled.
    source : str
        The name given by the user.
    original_size : tuple of int, optional
        Width and height before an earlier scaling; the size of `pixels` by default.
    notes : iterable of str
        Conversions so far.
    max_pixels : int, optional
        Maximum of width times height.
    encoded : Encoded, optional
        The file that the pixels come from, before they were scaled.
    normalized : bool, optional
        See `ImageInput`.

    Raises
    ------
    RequestError
        If `max_pixels` is not an int of 1 or more.
    """
    all_notes = list(notes)
    width, height = pixels.size
    target = fit_pixels((width, height), max_pixels)
    if target != (width, height):
        pixels = shrink(pixels, target)
        all_notes.append(f"scaled down from {width}x{height} to {target[0]}x{target[1]}")
    return ImageInput(
        StoredPixels(pixels, encoded),
        source,
        original_size or (width, height),
        _digest(pixels),
        "; ".join(all_notes) or None,
        normalized=normalized,
    )


def fit_pixels(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """Return the size that keeps the aspect ratio and has at most `max_pixels` pixels.

    Parameters
    ----------
    size : tuple of int
        Width and height in pixels.
    max_pixels : int or None
        Maximum of width times height; None is no limit.

    Returns
    -------
    tuple of int
        Width and height, at least 1 and at most those of `size`.

    Raises
    ------
    RequestError
        If `max_pixels` is not an int of 1 or more.
    """
    if max_pixels is None:
        return size
    limit = _whole_positive("max_pixels", max_pixels)
    width, height = size
    if width * height <= limit:
        return size
    scale = math.sqrt(limit / (width * height))
    new_width = max(1, math.floor(width * scale))
    new_height = max(1, math.floor(height * scale))
    # If one side is clamped to 1, the other one must be clamped, too.
    return min(new_width, limit // new_height or 1), min(new_height, limit // new_width or 1)


def _encode_thumbnail(pixels: Image.Image, side: int) -> Thumbnail:
    width, height = pixels.size
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = pixels if size == pixels.size else shrink(pixels, size)
    png, jpeg = io.BytesIO(), io.BytesIO()
    small.save(png, "PNG")
    small.save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    as_png = len(png.getvalue()) <= len(jpeg.getvalue())
    data, mime = (png, "image/png") if as_png else (jpeg, "image/jpeg")
    return Thumbnail(data.getvalue(), mime, *size)


def _digest(pixels: Image.Image) -> str:
    width, height = pixels.size
    found = hashlib.sha256(f"{pixels.mode} {width}x{height}\n".encode())
    for top in range(0, height, _DIGEST_ROWS):  # in strips, so that a large image is not copied
        strip = pixels.crop((0, top, width, min(top + _DIGEST_ROWS, height)))
        found.update(strip.tobytes())
    return found.hexdigest()


def _whole_positive(name: str, value: object) -> int:
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(
            f"{name} is {short_repr(value)}: use a whole number of 1 or more.", option=name
        )
    return value
