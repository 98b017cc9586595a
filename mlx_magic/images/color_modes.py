"""Converts all modes of Pillow to RGB: scales deep values, and puts transparency on white."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from mlx_magic.images.value_range import (
    Levels,
    ValueRange,
    float_levels,
    integer_levels,
    of_top,
    spread,
    stretched,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHITE = (255, 255, 255)
DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})
"""Modes of Pillow with values wider than 8 bits."""

NEARLY_BLACK = "16-bit values all under 256: nearly black; for 8-bit values use x.astype('uint8')"
DARK_MASK = "8-bit values all 0 and 1: nearly black; a mask of 0 and 255 would be visible"
# Maximum number of pixels that are converted at a time.
_SLICE_PIXELS = 1_000_000


@dataclass(frozen=True, slots=True)
class Converted:
    """An RGB copy of an image.

    Attributes
    ----------
    pixels : PIL.Image.Image
    notes : tuple of str
        Conversions for the user to know.
    deep : bool
        Whether its values are wider than 8 bits, so that `normalize` matters.
    """

    pixels: Image.Image
    notes: tuple[str, ...] = ()
    deep: bool = False


def converted(
    image: Image.Image,
    *,
    owned: bool = False,
    checkpoint: Callable[[], None] | None = None,
    normalize: bool = True,
    pages: Mapping[str, Any] | None = None,
) -> Converted:
    """Return an RGB copy of a loaded image.

    Values wider than 8 bits become levels as `value_range` describes, which is noted; integers
    and floats without such levels are stretched from their lowest to their highest value.
    Transparent parts become white.

    Parameters
    ----------
    image : PIL.Image.Image
        A loaded image of any mode; it is not changed.
    owned : bool
        Whether no other code uses the image. RGB pixels are then not copied.
    checkpoint : callable, optional
        Called between slices of deep gray images; may raise.
    normalize : bool
        False: 16-bit gray is scaled from its whole range, other numbers must be 0..255, or
        floats from 0 to 1.
    pages : mapping, optional
        Range of all pages of the file, so that the pages stay comparable; from `child_process`.

    Raises
    ------
    ValueError
        If the mode cannot be converted to RGB, or the values without `normalize`.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return Converted(_plain(image) if owned else image.copy())
    if image.mode in DEEP_MODES:
        return _deep_gray(image, checkpoint or (lambda: None), normalize=normalize, pages=pages)
    if image.mode == "LAB":
        return Converted(_from_lab(image))
    if image.has_transparency_data:
        return Converted(_on_white(image))
    dark = normalize and image.mode == "L" and image.getextrema() == (0, 1)
    return Converted(image.convert("RGB"), (DARK_MASK,) if dark else ())


def _plain(image: Image.Image) -> Image.Image:
    """Return an image with the same pixel memory, without a reference to the file."""
    new = getattr(image, "_new", None)
    return new(image.im) if new is not None and not image.readonly else image.copy()


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", layer.size, WHITE)
    flat.paste(layer, mask=layer.getchannel("A"))
    return flat


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    transform = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise ValueError("no conversion from LAB")
    return converted


def _deep_gray(
    image: Image.Image,
    checkpoint: Callable[[], None],
    *,
    normalize: bool,
    pages: Mapping[str, Any] | None,
) -> Converted:
    """Scale in slices, since a large image would take gigabytes as float64."""
    import numpy as np

    def parts() -> Iterator[tuple[tuple[int, int, int, int], NDArray[Any]]]:
        for box in slices(image.size):
            checkpoint()
            yield box, np.asarray(image.crop(box))

    values = ValueRange.of(part for _, part in parts())
    notes: tuple[str, ...] = ()
    if pages is not None and normalize:
        if pages["high"]:
            low, high = pages["low"][0], pages["high"][1]
            values = replace(values, low=min(values.low, low), high=max(values.high, high))
        notes = unread_pages(pages)
    levels = (_normalized if normalize else _unchanged)(image.mode, values)
    transparent = image.info.get("transparency")
    gray = Image.new("L", image.size)
    for box, part in parts():
        scaled = levels.scale(part)
        if isinstance(transparent, int):
            scaled = np.where(part == transparent, np.uint8(255), scaled)
        gray.paste(Image.fromarray(scaled), box)
    notes = (*filter(None, [levels.note]), *notes)
    return Converted(gray.convert("RGB"), notes, deep=True)


def unread_pages(pages: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note if not all pages were read for their range."""
    if pages["read"] >= pages["count"]:
        return ()
    return (f"scaled by the range of {pages['read']} of {pages['count']} pages",)


def _normalized(mode: str, values: ValueRange) -> Levels:
    return (float_levels if mode == "F" else integer_levels)(values) or stretched(values)


def _unchanged(mode: str, values: ValueRange) -> Levels:
    if mode.startswith("I;16"):
        return Levels(of_top(65_535), NEARLY_BLACK if values.high <= 255 else "")
    low, high = values.low, values.high
    if not values.finite:
        raise ValueError("it holds NaN or infinity; normalize shows these as black and white")
    if mode == "F" and low >= 0 and high <= 1:
        return Levels(spread(0.0, 1.0))
    if low < 0 or high > 255:
        raise ValueError(f"it holds values from {low:g} to {high:g}, which normalize would scale")
    return Levels(spread(0.0, 255.0))


def slices(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes with a bounded number of pixels, which may be parts of a row."""
    width, height = size
    across = min(width, _SLICE_PIXELS)
    down = max(1, _SLICE_PIXELS // across)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)
