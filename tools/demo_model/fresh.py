"""Draw a scene for measuring, with matplotlib: training never sees an image of this module.

It shares the contents of a scene with ``draw.py``, not its code: outlines, shades, edges, letters
and axes are made here, and the boxes of shapes come from the outlines that were drawn.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tools.demo_model.scene import Scene, Shape

Box = tuple[float, float, float, float]
RGB = tuple[float, float, float]
DPI = 100
FAMILIES = {
    "DejaVuSans": ("DejaVu Sans", "normal"),
    "DejaVuSans-Bold": ("DejaVu Sans", "bold"),
    "DejaVuSansMono": ("DejaVu Sans Mono", "normal"),
    "DejaVuSerif": ("DejaVu Serif", "normal"),
    "Aileron": ("DejaVu Sans", "normal"),  # matplotlib does not have it
}
# Hue in degrees, saturation and value: from where to where each colour is called so.
SHADES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((354, 362), (0.84, 1.0), (0.84, 1.0)),
    "orange": ((27, 38), (0.85, 1.0), (0.95, 1.0)),
    "yellow": ((53, 60), (0.78, 1.0), (0.94, 1.0)),
    "green": ((118, 138), (0.7, 1.0), (0.5, 0.75)),
    "blue": ((205, 240), (0.78, 1.0), (0.7, 1.0)),
    "purple": ((272, 300), (0.62, 1.0), (0.5, 0.7)),
    "pink": ((326, 350), (0.25, 0.48), (0.94, 1.0)),
    "brown": ((20, 28), (0.66, 0.86), (0.48, 0.55)),
}
LEVELS = {"white": (0.95, 1.0), "grey": (0.5, 0.77), "black": (0.0, 0.1)}


@dataclass
class Fresh:
    """An image, with the boxes of its shapes as fractions of width and height."""

    image: Image.Image
    boxes: list[Box] = field(default_factory=list)


def shade(rng: Random, colour: str) -> RGB:
    """Return a shade that people call by a colour's name."""
    hue, saturation, value = (rng.uniform(*limits) for limits in SHADES[colour])
    return colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)


def corners(kind: str, rng: Random) -> list[tuple[float, float]]:
    """Return a shape's corners, upwards being positive, for a radius of one."""
    tilt = rng.gauss(0, 7) if rng.random() < 0.5 else 0.0
    polar: list[tuple[float, float]] = []
    if kind == "square":
        polar = [(1.27, 45.0 + 90 * i) for i in range(4)]
    elif kind == "triangle":
        polar = [(1.2, 90.0 + 120 * i) for i in range(3)]
    elif kind == "star":
        inner = rng.uniform(0.46, 0.58)
        polar = [(1.2 if i % 2 == 0 else inner, 90.0 + 36 * i) for i in range(10)]
    else:
        arm = rng.uniform(13, 19)
        notch = 1.12 * math.sin(math.radians(arm)) * math.sqrt(2)
        for i in range(4):
            polar += [(1.12, 90 * i - arm), (1.12, 90 * i + arm), (notch, 90.0 * i + 45)]
    turned = [(r, math.radians(angle + tilt)) for r, angle in polar]
    return [(r * math.cos(angle), r * math.sin(angle)) for r, angle in turned]


def render(scene: Scene) -> Fresh:
    """Draw a scene.

    Parameters
    ----------
    scene
        What to draw; its seed decides on shades, angles and the like.

    Returns
    -------
    Fresh
        The image in the scene's size, and the box of each shape in the scene's order.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rng = Random(scene.seed ^ 0x5EED)
    level = rng.uniform(*LEVELS[scene.background])
    if scene.background != "grey" and rng.random() < 0.5:
        level = round(level)
    figure = Figure((scene.width / DPI, scene.height / DPI), DPI, facecolor=(level,) * 3)
    canvas = FigureCanvasAgg(figure)
    boxes: list[Box] = []
    if scene.chart is not None:
        _chart(figure, scene, level, rng)
    else:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, scene.width)
        axes.set_ylim(scene.height, 0)
        axes.axis("off")
        boxes = [_shape(axes, shape, scene, rng) for shape in scene.shapes]
        ink = _ink(level, rng)
        for digit in scene.digits:
            _digit(axes, scene, digit, ink, rng)
        if scene.text is not None:
            _text(axes, scene, ink)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return Fresh(Image.fromarray(np.ascontiguousarray(pixels)), boxes)


def _shape(axes: Any, shape: Shape, scene: Scene, rng: Random) -> Box:
    """Draw one shape and return its box."""
    from matplotlib.patches import Circle, Polygon

    size = shape.radius * math.sqrt(scene.width * scene.height)
    x, y = shape.x * scene.width, shape.y * scene.height
    edge = (0.0, 0.0, 0.0) if rng.random() < 0.1 else None
    look = {"facecolor": shade(rng, shape.colour), "edgecolor": edge or "none",
            "linewidth": 0.05 * size * 72 / DPI if edge else 0, "joinstyle": "miter"}  # fmt: skip
    if shape.kind == "circle":
        axes.add_patch(Circle((x, y), size, **look))
        xs, ys = [x - size, x + size], [y - size, y + size]
    else:
        points = [(x + size * px, y - size * py) for px, py in corners(shape.kind, rng)]
        axes.add_patch(Polygon(points, closed=True, **look))
        xs, ys = [px for px, _ in points], [py for _, py in points]
    # Half of the edge lies outside of the outline.
    out = 0.025 * size if edge else 0.0
    xs, ys = [min(xs) - out, max(xs) + out], [min(ys) - out, max(ys) + out]
    left, right = (min(1.0, max(0.0, v / scene.width)) for v in xs)
    upper, lower = (min(1.0, max(0.0, v / scene.height)) for v in ys)
    return left, upper, right, lower


def _ink(level: float, rng: Random) -> RGB:
    """Return a colour for text that stands out from the background."""
    if rng.random() < 0.6:
        return (0.0,) * 3 if level > 0.42 else (1.0,) * 3
    while True:
        ink = colorsys.hsv_to_rgb(rng.random(), rng.random(), rng.random())
        light = 0.3 * ink[0] + 0.59 * ink[1] + 0.11 * ink[2]
        if abs(light - level) > 0.4:
            return ink


def _digit(axes: Any, scene: Scene, digit: Any, ink: RGB, rng: Random) -> None:
    """Draw a handwritten or printed digit."""
    from tools.demo_model.draw import handwriting

    x, y, height = digit.x * scene.width, digit.y * scene.height, digit.height * scene.height
    if digit.sample is None:
        family, weight = FAMILIES[digit.font]
        axes.text(x, y, str(digit.value), color=ink, family=family, weight=weight,
                  size=height * 72 / DPI, ha="center", va="center_baseline")  # fmt: skip
        return
    grid = handwriting()[0][digit.sample].astype(float) / 16
    layer = np.empty((8, 8, 4))
    layer[..., :3], layer[..., 3] = ink, grid
    half = height / 2
    smooth = rng.choice(("bilinear", "bicubic", "hanning", "nearest"))
    axes.imshow(layer, extent=(x - half, x + half, y + half, y - half), interpolation=smooth,
                aspect="auto")  # fmt: skip
    axes.set_xlim(0, scene.width)
    axes.set_ylim(scene.height, 0)


def _text(axes: Any, scene: Scene, ink: RGB) -> None:
    """Print a word or a number as wide as the scene says, inside the image."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    text = scene.text
    assert text is not None
    family, weight = FAMILIES[text.font]
    font = FontProperties(family=family, weight=weight)
    extent = TextPath((0, 0), text.text, size=100, prop=font).get_extents()
    size = min(100 * text.width * scene.width / extent.width, 0.62 * scene.height)
    half = extent.width * size / 200
    x = min(max(text.x * scene.width, half + 1), scene.width - half - 1)
    y = min(max(text.y * scene.height, 0.55 * size), scene.height - 0.55 * size)
    axes.text(x, y, text.text, color=ink, fontproperties=font, size=size * 72 / DPI, ha="center",
              va="center")  # fmt: skip


def _chart(figure: Any, scene: Scene, level: float, rng: Random) -> None:
    """Draw a bar chart with matplotlib's own bars, ticks and spines."""
    chart = scene.chart
    assert chart is not None
    size = (chart.left, chart.bottom, 1 - chart.left - chart.right, 1 - chart.top - chart.bottom)
    axes = figure.add_axes(size, facecolor=(level,) * 3)
    ink = (0.0,) * 3 if level > 0.42 else (1.0,) * 3
    shades = {bar.colour: shade(rng, bar.colour) for bar in chart.bars}
    places = range(len(chart.bars))
    axes.bar(places, [bar.value for bar in chart.bars], chart.filled,
             color=[shades[bar.colour] for bar in chart.bars],
             edgecolor=ink if rng.random() < 0.15 else None)  # fmt: skip
    points = chart.letters * scene.height * 72 / DPI
    axes.set_xlim(-0.5, len(chart.bars) - 0.5)
    axes.set_ylim(0, chart.limit)
    letters = [bar.letter for bar in chart.bars]
    family = rng.choice(("DejaVu Sans", "DejaVu Sans", "DejaVu Serif"))
    axes.set_xticks(list(places), letters, color=ink, size=points, family=family)
    axes.set_yticks(chart.ticks, [str(tick) for tick in chart.ticks], color=ink, size=points,
                    family=family)  # fmt: skip
    length = 0.02 * scene.width * 72 / DPI
    axes.tick_params(axis="y", length=length, pad=0.01 * scene.width * 72 / DPI, colors=ink)
    axes.tick_params(axis="x", length=0, pad=0.02 * scene.height * 72 / DPI, colors=ink)
    for spine in axes.spines.values():
        spine.set_color(ink)
    if rng.random() < 0.5:
        axes.spines[["top", "right"]].set_visible(False)
    if rng.random() < 0.25:
        axes.grid(axis="y", alpha=0.4)
        axes.set_axisbelow(True)
