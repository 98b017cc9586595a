"""What an image holds: shapes, handwritten digits or printed text, drawn from a random source."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
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
    seed: int | None = None  # of its outline; without one the image's seed decides

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
class Bar:
    """One bar of a chart: a letter or nothing below it, its colour and its value."""

    letter: str
    colour: str
    value: int

    @property
    def name(self) -> str:
        """Return the letter if there is one, else the colour."""
        return self.letter or self.colour

    @property
    def noun(self) -> str:
        """Return the bar in words, such as ``bar B`` or ``the red bar``."""
        return f"bar {self.letter}" if self.letter else f"the {self.colour} bar"


@dataclass
class Chart:
    """A bar chart; its axis begins at 0, and its margins are fractions of the image."""

    bars: list[Bar]
    limit: float  # the value at the upper end of the axis
    ticks: list[int]
    left: float
    right: float
    top: float
    bottom: float
    filled: float  # the part of its slot that a bar fills
    letters: float  # height of letters and numbers

    def box(self, number: int) -> tuple[float, float, float, float]:
        """Return a bar's left, upper, right and lower edge, as fractions of the image."""
        slot = (1 - self.left - self.right) / len(self.bars)
        middle = self.left + slot * (number + 0.5)
        half = slot * self.filled / 2
        low = 1 - self.bottom
        high = low - (low - self.top) * self.bars[number].value / self.limit
        return middle - half, high, middle + half, low


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
    chart: Chart | None = None

    def box(self, shape: Shape) -> tuple[float, float, float, float]:
        """Return a shape's left, upper, right and lower edge, as fractions of the image.

        Parameters
        ----------
        shape
            A shape of this image that has a seed of its own.
        """
        points = outline(shape.kind, shape.seed or 0)
        root = math.sqrt(self.width * self.height)
        across, down = shape.radius * root / self.width, shape.radius * root / self.height
        xs = [shape.x + across * x for x, _ in points]
        ys = [shape.y + down * y for _, y in points]
        edges = (min(xs), min(ys), max(xs), max(ys))
        left, upper, right, lower = (min(1.0, max(0.0, edge)) for edge in edges)
        return left, upper, right, lower

    @property
    def ordered(self) -> list[Shape] | None:
        """Return the shapes from left to right; None where the order is in doubt."""
        row = sorted(self.shapes, key=lambda shape: shape.x)
        return row if all(b.x - a.x >= 0.08 for a, b in pairwise(row)) else None


@lru_cache(maxsize=20_000)
def outline(kind: str, seed: int) -> tuple[tuple[float, float], ...]:
    """Return a shape's corners around the origin, for a radius of one.

    Parameters
    ----------
    kind
        One of ``SHAPES``; of a circle only the four outermost points are returned.
    seed
        Decides on angle and proportions.
    """
    if kind == "circle":
        return ((-1.03, 0.0), (1.03, 0.0), (0.0, -1.03), (0.0, 1.03))
    return tuple(corners(kind, Random(seed)))


def corners(kind: str, rng: Random) -> list[tuple[float, float]]:
    """Return the corners of anything but a circle, around the origin, for a radius of one."""
    turn = math.radians(rng.uniform(-20, 20)) if rng.random() < 0.6 else 0.0
    if kind == "square":
        points = [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    elif kind == "triangle":
        if rng.random() < 0.2:
            turn += math.pi * rng.choice((0.5, 1.0, 1.5))
        points = [(0.0, -1.1), (1.08, 0.85), (-1.08, 0.85)]
    elif kind == "star":
        inner, angles = rng.uniform(0.4, 0.5), [math.pi * i / 5 - math.pi / 2 for i in range(10)]
        radii = [1.2 if i % 2 == 0 else 1.2 * inner for i in range(10)]
        points = [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    else:
        a, b = rng.uniform(0.26, 0.4), 1.1
        if rng.random() < 0.1:
            turn += math.pi / 4
        points = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        points += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    cos, sin = math.cos(turn), math.sin(turn)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


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
                rng.getrandbits(32),
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


def chart_scene(rng: Random) -> Scene:
    """Return an image of a bar chart of two to five bars, with numbers at its axis."""
    scene = _empty(rng, 96)
    scene.background = rng.choice(("white", "white", "white", "grey", "black"))
    count = rng.choice((2, 3, 3, 4, 4, 5, 5))
    most = rng.choice((rng.randint(5, 10), rng.randint(10, 30), rng.randint(20, 100), 100))
    # No bar is so low that a tenth of its value could not be seen, and no two are nearly the same.
    step = max(1, math.ceil(0.06 * most))
    levels = list(range(most, math.ceil(0.2 * most) - 1, -step))
    count = min(count, len(levels))
    values = [most, *rng.sample(levels[1:], count - 1)]
    values = [value - (rng.randrange(step) // 2 if i > 0 else 0) for i, value in enumerate(values)]
    rng.shuffle(values)
    colours = rng.sample(COLOURS, count)
    letters = [""] * count
    if rng.random() < 0.5:
        start = 0 if rng.random() < 0.7 else rng.randrange(21)
        letters = [chr(65 + start + i) for i in range(count)]
        colours = [colours[0]] * count if rng.random() < 0.65 else colours
    bars = [Bar(*parts) for parts in zip(letters, colours, values, strict=True)]
    spacing = rng.choice([t for t in (1, 2, 5, 10, 20, 25, 50) if 1.6 <= most / t <= 6.5])
    limit = most * rng.choice((1.05, 1.05, 1.0, rng.uniform(1.0, 1.3)))
    if rng.random() < 0.4:
        limit = math.ceil(most / spacing) * spacing
    ticks = list(range(0, int(limit) + 1, spacing))
    height = rng.uniform(0.07, 0.11)
    widest = len(str(ticks[-1])) * 0.62 * height * scene.height / scene.width
    scene.chart = Chart(
        bars,
        limit,
        ticks,
        left=min(0.4, widest + rng.uniform(0.03, 0.09)),
        right=rng.uniform(0.02, 0.1),
        top=rng.uniform(height * 0.6, 0.14),
        bottom=(height * 1.25 if letters[0] else 0.03) + rng.uniform(0.01, 0.07),
        filled=rng.uniform(0.5, 0.9),
        letters=height,
    )
    return scene


def _empty(rng: Random, smallest: int = SMALLEST) -> Scene:
    """Return an image with nothing on it yet."""
    width, height = image_size(rng, smallest)
    return Scene(width, height, rng.choice(BACKGROUNDS), seed=rng.getrandbits(32))
