"""Boxes and points drawn on a copy of an image, at its original size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlx_magic.data.places.layout import Rectangle, colors, label_positions, outline
from mlx_magic.engine.places.values import Box, Point

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    from mlx_magic.images.image import ImageInput

_LONGEST_LABEL = 40  # characters


def draw(image: ImageInput, places: Sequence[Box | Point]) -> Image.Image:
    """Return a copy of an image with places.

    Lines and text grow with the image. A dashed box was clipped or inverted.

    Parameters
    ----------
    image : ImageInput
    places : sequence of Box or Point
        Those on this image.

    Returns
    -------
    PIL.Image.Image
        RGB and upright, of ``image.original_size``.
    """
    from PIL import ImageDraw, ImageFont

    picture = original(image)
    pen = ImageDraw.Draw(picture)
    side = min(picture.size)
    line = max(2, round(side / 200))
    text_size = max(11, round(side / 30))
    font = ImageFont.load_default(text_size)
    margin = max(2, text_size // 5)
    color = colors(place.label for place in places)
    radius = 2.5 * line
    outlines = [outline(place, (1, 1), radius) for place in places]
    texts = [short(place.label) for place in places]
    sizes = [_size(pen, text, font, margin) for text in texts]
    for place, around in zip(places, outlines, strict=True):
        corners = (around.left, around.top, around.right, around.bottom)
        if isinstance(place, Point):
            pen.ellipse(corners, fill=color[place.label], outline="white", width=max(1, line // 2))
        elif place.clipped or place.inverted:
            _dashed(pen, around, color[place.label], line)
        else:
            # A light rim, for images of the same color.
            rim = (around.left - 1, around.top - 1, around.right + 1, around.bottom + 1)
            pen.rectangle(rim, outline="white", width=line + 2)
            pen.rectangle(corners, outline=color[place.label], width=line)
    spots = label_positions(outlines, sizes, picture.size)
    for place, text, spot in zip(places, texts, spots, strict=True):
        if spot is not None and text:
            corners = (spot.left, spot.top, spot.right, spot.bottom)
            pen.rectangle(corners, fill=color[place.label])
            left, top, _, _ = pen.textbbox((0, 0), text, font=font)
            pen.text(
                (spot.left + margin - left, spot.top + margin - top), text, fill="white", font=font
            )
    return picture


def original(image: ImageInput) -> Image.Image:
    """Return a copy of an image at its original size.

    If an image that came from no file was scaled down by ``max_pixels``, it is scaled up.
    """
    from PIL.Image import Resampling

    if image.size != image.original_size and image.stored.file is not None:
        return image.stored.file.decode(image.original_size).copy()
    pixels = image.pixels
    if pixels.size == image.original_size:
        return pixels.copy()
    return pixels.resize(image.original_size, Resampling.LANCZOS)


def short(label: str) -> str:
    """Return a label as it is drawn."""
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _size(pen: ImageDraw.ImageDraw, text: str, font: Any, margin: int) -> tuple[float, float]:
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    return right - left + 2 * margin, bottom - top + 2 * margin


def _dashed(pen: ImageDraw.ImageDraw, around: Rectangle, color: str, line: int) -> None:
    """Draw a dashed rectangle."""
    dash, step = 2.5 * line, 4 * line
    for at in _steps(around.left, around.right, step):
        end = min(at + dash, around.right)
        for y in (around.top, around.bottom):
            pen.line([(at, y), (end, y)], fill=color, width=line)
    for at in _steps(around.top, around.bottom, step):
        end = min(at + dash, around.bottom)
        for x in (around.left, around.right):
            pen.line([(x, at), (x, end)], fill=color, width=line)


def _steps(start: float, end: float, step: float) -> list[float]:
    return [start + step * count for count in range(int((end - start) / step) + 1)]
