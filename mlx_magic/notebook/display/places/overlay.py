"""Boxes and points as SVG over a thumbnail, with a list of their labels.

Labels are text of a model: they are escaped, and never markup.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from html import escape

from mlx_magic.data.places.drawing import short
from mlx_magic.data.places.layout import Rectangle, colors, label_positions, outline
from mlx_magic.engine.places.values import Box, Point

MOST_DRAWN = 500
"""Places that are drawn on one thumbnail; a notebook with more would be slow."""

_MOST_LISTED = 12
_LISTED = "display:inline-block;margin-right:9px"
_TEXT = 11  # pixels
_MARGIN = 4
_LINE = 2
_RADIUS = 4


def svg(places: Sequence[Box | Point], original: tuple[int, int], shown: tuple[int, int]) -> str:
    """Return an element that covers a thumbnail and draws places on it.

    The enclosing element must have ``position:relative`` and the thumbnail's size.

    Parameters
    ----------
    places : sequence of Box or Point
        Those on this image.
    original, shown : tuple of int
        Width and height of the original and of the thumbnail, in pixels.
    """
    places = places[:MOST_DRAWN]
    width, height = shown
    scale = width / original[0], height / original[1]
    color = colors(place.label for place in places)
    outlines = [outline(place, scale, _RADIUS) for place in places]
    texts = [short(place.label) for place in places]
    sizes = [(_text_width(text) + 2 * _MARGIN, _TEXT + _MARGIN + 1) for text in texts]
    drawn = [
        _shape(place, around, color[place.label])
        for place, around in zip(places, outlines, strict=True)
    ]
    spots = label_positions(outlines, sizes, shown)
    labels = [
        _label(text, spot, color[place.label])
        for place, text, spot in zip(places, texts, spots, strict=True)
        if text and spot is not None
    ]
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(summary(places))}" style="position:absolute;left:0;top:0;'
        f'width:100%;height:100%;overflow:hidden">{"".join(drawn + labels)}</svg>'
    )


def legend(places: Sequence[Box | Point]) -> str:
    """Return a line with the labels, their colors and how often each occurs."""
    counts = Counter(place.label for place in places)
    color = colors(counts)
    parts = [
        f'<span style="color:{color[label]}">&#9632;</span> {escape(label or "(no label)")}'
        + (f" &times; {count}" if count > 1 else "")
        for label, count in list(counts.items())[:_MOST_LISTED]
    ]
    if len(counts) > _MOST_LISTED:
        parts.append(f"and {len(counts) - _MOST_LISTED} more labels")
    if len(places) > MOST_DRAWN:
        parts.append(f"the first {MOST_DRAWN} of {len(places)} are drawn")
    marked = sum(place.clipped or (isinstance(place, Box) and place.inverted) for place in places)
    if marked:
        parts.append(f"dashed: {marked} outside of the image or inverted")
    return "".join(f'<span style="{_LISTED}">{part}</span>' for part in parts)


def summary(places: Sequence[Box | Point]) -> str:
    """Return what is drawn, in words."""
    boxes = sum(isinstance(place, Box) for place in places)
    points = len(places) - boxes
    parts = [
        f"{count} {name}{'' if count == 1 else ending}"
        for count, name, ending in ((boxes, "box", "es"), (points, "point", "s"))
        if count
    ]
    named = ", ".join(filter(None, list(dict.fromkeys(p.label for p in places))[:_MOST_LISTED]))
    return " and ".join(parts) + (f": {named}" if named else "")


def _shape(place: Box | Point, around: Rectangle, color: str) -> str:
    title = f"<title>{escape(_title(place))}</title>"
    odd = place.clipped or (isinstance(place, Box) and place.inverted)
    dash = ' stroke-dasharray="5 3"' if odd else ""
    if isinstance(place, Point):
        x, y = (around.left + around.right) / 2, (around.top + around.bottom) / 2
        return (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}" fill="{color}" stroke="#fff" '
            f'stroke-width="1.5"{dash}>{title}</circle>'
        )
    form = (
        f'x="{around.left:.1f}" y="{around.top:.1f}" width="{around.right - around.left:.1f}" '
        f'height="{around.bottom - around.top:.1f}"'
    )
    # A light rim, for images of the same color. The fill is what the pointer meets.
    return (
        f'<rect {form} fill="none" stroke="#fff" stroke-opacity="0.7" '
        f'stroke-width="{_LINE + 2}"></rect><rect {form} fill="{color}" fill-opacity="0.06" '
        f'stroke="{color}" stroke-width="{_LINE}"{dash}>{title}</rect>'
    )


def _label(text: str, spot: Rectangle, color: str) -> str:
    return (
        f'<rect x="{spot.left:.1f}" y="{spot.top:.1f}" width="{spot.right - spot.left:.1f}" '
        f'height="{spot.bottom - spot.top:.1f}" rx="2" fill="{color}"></rect>'
        f'<text x="{spot.left + _MARGIN:.1f}" y="{spot.top + _TEXT + 1:.1f}" fill="#fff" '
        f'font-family="Helvetica,Arial,sans-serif" font-size="{_TEXT}" font-weight="600" '
        f'textLength="{spot.right - spot.left - 2 * _MARGIN:.1f}" '
        f'lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
    )


def _title(place: Box | Point) -> str:
    numbers = place.xyxy if isinstance(place, Box) else place.xy
    where = ", ".join(f"{number:.0f}" for number in numbers)
    odd = [
        word
        for word, holds in (
            ("clipped", place.clipped),
            ("inverted", isinstance(place, Box) and place.inverted),
        )
        if holds
    ]
    return " ".join(filter(None, (place.label, f"({where})", *odd)))


def _text_width(text: str) -> float:
    """Return about how wide a text is; the browser fits it to this width."""
    return _TEXT * sum(map(_character_width, text))


def _character_width(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.05
    if character in "iljft.,:;'|!()[] 1I":
        return 0.34
    return 0.88 if character in "mwMW@%" else 0.72 if character.isupper() else 0.58
