"""What an image holds: shapes, handwritten digits or printed text, drawn from a random source."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from tools.demo_model.fonts import NAMES

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
BACKGROUNDS = ("white", "grey", "black")
SMALLEST, LARGEST = 48, 512
# Thirds of the image, with a gap between them, so that no place is in doubt.
THIRDS = ((0.0, 0.34), (0.44, 0.56), (0.66, 1.0))
SIZES = (("small", 0.0, 0.092), ("medium", 0.12, 0.155), ("large", 0.2, 1.0))
# The largest radius by number of shapes, as a fraction of the root of the image's area.
LARGEST_RADIUS = {1: 0.38, 2: 0.23, 3: 0.19, 4: 0.15, 5: 0.13, 6: 0.115}


@dataclass
class Shape:
    """One shape; places are fractions of width and height, the radius of the area's root."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        """Return colour and kind, such as ``red circle``."""
        return f"{self.colour} {self.kind}"

    @property
    def size(self) -> str | None:
        """Return small, medium or large; None near a border."""
        return next((name for name, low, high in SIZES if low <= self.radius <= high), None)

    @property
    def place(self) -> str | None:
        """Return where the shape is, in words; None near a border."""
        column, row = third(self.x), third(self.y)
        if column is None or row is None:
            return None
        side = ("left", "", "right")[column]
        if row == 1:
            return f"on the {side}" if side else "in the center"
        return f"at the {('top', '', 'bottom')[row]} {side}".strip()


@dataclass
class Digit:
    """One digit: a row of the handwriting data, or printed where ``sample`` is None."""

    value: int
    sample: int | None
    x: float
    y: float
    height: float
    font: str
    turn: float = 0.0
    stretch: float = 1.0


@dataclass
class Text:
    """One printed word or number, its center, and the width that it should fill."""

    text: str
    font: str
    x: float
    y: float
    width: float

    @property
    def is_number(self) -> bool:
        """Return whether the text is made of digits."""
        return self.text.isdigit()


@dataclass
class Scene:
    """A whole image, before it is drawn."""

    width: int
    height: int
    background: str
    shapes: list[Shape] = field(default_factory=list)
    digits: list[Digit] = field(default_factory=list)
    text: Text | None = None
    seed: int = 0

    @property
    def ordered(self) -> list[Shape] | None:
        """Return the shapes from left to right; None where the order is in doubt."""
        row = sorted(self.shapes, key=lambda shape: shape.x)
        return row if all(b.x - a.x >= 0.08 for a, b in pairwise(row)) else None


def third(value: float) -> int | None:
    """Return 0, 1 or 2 for the third of the image that a place is in; None in between."""
    return next((i for i, (low, high) in enumerate(THIRDS) if low <= value <= high), None)


def image_size(rng: Random, smallest: int = SMALLEST) -> tuple[int, int]:
    """Return a width and height, a third of the time not square."""
    side = math.exp(rng.uniform(math.log(smallest), math.log(LARGEST)))
    aspect = math.exp(rng.uniform(-0.55, 0.55)) if rng.random() < 0.35 else 1.0
    width, height = (round(side * aspect**0.5), round(side / aspect**0.5))
    return (max(SMALLEST, min(LARGEST, width)), max(SMALLEST, min(LARGEST, height)))


def _place(rng: Random, low: float, high: float) -> float:
    """Return a coordinate between two borders, mostly inside one of the thirds."""
    if rng.random() < 0.12:
        return rng.uniform(low, high)
    first, last = rng.choice([t for t in THIRDS if t[1] > low and t[0] < high])
    return rng.uniform(max(low, first), min(high, last))


def _try_shapes(rng: Random, scene: Scene, count: int, top: float, bottom: float) -> bool:
    """Place shapes without overlap between two heights; say whether that worked."""
    scene.shapes = []
    root = math.sqrt(scene.width * scene.height)
    smallest = max(0.05, 4.6 / root)
    largest = min(LARGEST_RADIUS[count], 0.36 * (bottom - top))
    if smallest >= largest:
        return False
    in_order = rng.random() < 0.9
    same = rng.random() < 0.3
    kinds, colours = rng.sample(SHAPES, 2), rng.sample(COLOURS, 3)
    for _ in range(count):
        for _attempt in range(30):
            radius = rng.uniform(smallest, largest)
            dx, dy = 1.3 * radius * root / scene.width, 1.3 * radius * root / scene.height
            if dx > 0.49 or dy > 0.49 * (bottom - top):
                continue
            shape = Shape(
                rng.choice(kinds) if same else rng.choice(SHAPES),
                rng.choice(colours) if same else rng.choice(COLOURS),
                _place(rng, dx, 1 - dx),
                _place(rng, top + dy, bottom - dy),
                radius,
            )
            if _fits(scene, shape, root, in_order):
                scene.shapes.append(shape)
                break
        else:
            return False
    return True


def _fits(scene: Scene, shape: Shape, root: float, in_order: bool) -> bool:
    """Return whether a shape is clear of those already placed."""
    for other in scene.shapes:
        if in_order and abs(other.x - shape.x) < 0.085:
            return False
        distance = math.hypot((other.x - shape.x) * scene.width, (other.y - shape.y) * scene.height)
        if distance < 1.3 * (other.radius + shape.radius) * root + 0.01 * root:
            return False
    return True


def shapes_scene(rng: Random, count: int | None = None) -> Scene:
    """Return an image of one to six shapes."""
    while True:
        number = count or rng.choice((1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6))
        scene = _empty(rng, 48 if number < 4 else 72 if number < 5 else 96)
        if _try_shapes(rng, scene, number, 0.0, 1.0):
            return scene


def digit_scene(
    rng: Random, samples: dict[int, list[int]], count: int = 1, bend: bool = False
) -> Scene:
    """Return an image of one digit, or of two side by side.

    Parameters
    ----------
    rng
        The random source.
    samples
        For each digit the rows of the handwriting data that may be used.
    count
        One digit or two.
    bend
        Whether to turn and stretch the handwriting a little, which makes more of the few rows.
    """
    scene = _empty(rng)
    for i in range(count):
        value = rng.randrange(10)
        sample = None if rng.random() < 0.2 else rng.choice(samples[value])
        height = rng.uniform(0.35, 0.95) if count == 1 else rng.uniform(0.4, 0.9)
        height = min(height, (0.95 if count == 1 else 0.46) * scene.width / scene.height)
        half = 0.5 * height * scene.height / scene.width
        low, high = (half, 1 - half) if count == 1 else (0.5 * i + half, 0.5 + 0.5 * i - half)
        x = rng.uniform(low, high) if high > low else (low + high) / 2
        y = rng.uniform(height / 2, 1 - height / 2)
        digit = Digit(value, sample, x, y, height, rng.choice(NAMES))
        if bend and rng.random() < 0.8:
            digit.turn, digit.stretch = rng.uniform(-14, 14), rng.uniform(0.78, 1.2)
        scene.digits.append(digit)
    return scene


def text_scene(rng: Random, text: str, shapes: int | None = None) -> Scene:
    """Return an image of a printed word or number, at times with a shape or two.

    Parameters
    ----------
    rng
        The random source.
    text
        What is printed.
    shapes
        How many shapes; None leaves that to chance.
    """
    while True:
        number = shapes if shapes is not None else rng.choice((0,) * 7 + (1, 1, 2))
        scene = _empty(rng, 64 if number else 48)
        narrowest = max(0.064 * len(text), 0.15, 6.0 * len(text) / scene.width)
        widest = min(0.94, 0.3 * len(text))
        if narrowest > widest:
            continue
        low, high = 0.12, 0.88
        if number:
            at_top = rng.random() < 0.5
            low, high = (0.12, 0.28) if at_top else (0.72, 0.88)
            top, bottom = (0.42, 1.0) if at_top else (0.0, 0.58)
            widest = min(widest, max(narrowest, 0.16 * len(text)))
            if not _try_shapes(rng, scene, number, top, bottom):
                continue
        width = rng.uniform(narrowest, widest)
        x = rng.uniform(width / 2 + 0.01, 0.99 - width / 2)
        scene.text = Text(text, rng.choice(NAMES), x, rng.uniform(low, high), width)
        return scene


def _empty(rng: Random, smallest: int = SMALLEST) -> Scene:
    """Return an image with nothing on it yet."""
    width, height = image_size(rng, smallest)
    return Scene(width, height, rng.choice(BACKGROUNDS), seed=rng.getrandbits(32))
