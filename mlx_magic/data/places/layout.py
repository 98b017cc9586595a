"""Colors of labels, and positions at which labels do not hide each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_magic.engine.places.values import Box, Point

# Distinct hues of similar darkness: white text is legible on each.
PALETTE = (
    "#d62728", "#1f6fd0", "#2a8a35", "#8e44c9", "#c2570c", "#0b8a8f", "#c2277f", "#7a5c00",
    "#4b53bc", "#8c564b", "#56707d", "#5b7a00",
)  # fmt: skip

MOST_LABELS = 150
"""Labels that are placed on one image; a list of all labels stands beside it."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A rectangle, in pixels of what is drawn."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Rectangle) -> bool:
        """Whether the two overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def colors(labels: Iterable[str]) -> dict[str, str]:
    """Return a color for each label, as ``#rrggbb``, by its order of first occurrence."""
    known = dict.fromkeys(labels)
    return {label: PALETTE[number % len(PALETTE)] for number, label in enumerate(known)}


def outline(place: Box | Point, scale: tuple[float, float], radius: float) -> Rectangle:
    """Return what a place covers when it is drawn.

    Parameters
    ----------
    place : Box or Point
    scale : tuple of float
        Pixels of the drawing for each pixel of the original, in x and in y.
    radius : float
        Of a point, in pixels of the drawing.
    """
    x, y = scale
    if isinstance(place, Box):
        return Rectangle(place.x1 * x, place.y1 * y, place.x2 * x, place.y2 * y)
    at_x, at_y = place.x * x, place.y * y
    return Rectangle(at_x - radius, at_y - radius, at_x + radius, at_y + radius)


def label_positions(
    outlines: Sequence[Rectangle],
    sizes: Sequence[tuple[float, float]],
    area: tuple[float, float],
) -> list[Rectangle | None]:
    """Place labels beside what they name, so that none hides another one.

    Parameters
    ----------
    outlines : sequence of Rectangle
    sizes : sequence of (float, float)
        Width and height of each label.
    area : tuple of float
        Width and height of the drawing, within which the labels stay.

    Returns
    -------
    list of Rectangle or None
        None for a label that has no room.
    """
    placed: list[Rectangle] = []
    found: list[Rectangle | None] = [None] * len(outlines)
    # Small boxes have the least choice.
    order = sorted(range(len(outlines)), key=lambda at: (_area(outlines[at]), at))
    for at in order[:MOST_LABELS]:
        for spot in _spots(outlines[at], sizes[at], area):
            if not any(spot.meets(other) for other in placed):
                placed.append(spot)
                found[at] = spot
                break
    return found


def _area(rectangle: Rectangle) -> float:
    return (rectangle.right - rectangle.left) * (rectangle.bottom - rectangle.top)


def _spots(
    outline: Rectangle, size: tuple[float, float], area: tuple[float, float]
) -> Iterable[Rectangle]:
    """Yield positions for a label, the best first; all within the area."""
    width, height = size
    if width > area[0] or height > area[1]:
        return
    left, right = outline.left, outline.right - width
    above, below = outline.top - height, outline.bottom
    top, bottom = outline.top, outline.bottom - height
    wanted = (
        (left, above), (right, above), (left, below), (right, below),
        (left, top), (right, top), (left, bottom), (right, bottom),
        (outline.right, top), (left - width, top), (outline.right, bottom), (left - width, bottom),
    )  # fmt: skip
    for x, y in wanted:
        if 0 <= y <= area[1] - height:
            x = min(max(x, 0.0), area[0] - width)
            # Moved in from the margin it must still touch what it names.
            if x <= outline.right and x + width >= outline.left:
                yield Rectangle(x, y, x + width, y + height)
