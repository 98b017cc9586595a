"""Draw a scene as an image, and mark what lies in which cell of the model's grid."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tools.demo_model.fonts import NAMES, font
from tools.demo_model.scene import COLOURS, SHAPES, Digit, Scene, Shape, corners, outline

SIDE = 128  # the model's input, in pixels
PATCHES = 16  # patches a side, on which characters are marked
CELLS = 8  # image tokens a side, on which shapes and digits are marked
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
MARKS = 1 + len(SHAPES) * len(COLOURS) + len(COLOURS) + 10  # nothing, shapes, bars, digits

RGB = tuple[int, int, int]
# Each colour as named by CSS and by matplotlib, and as a plain paint.
ANCHORS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (214, 39, 40), (225, 30, 45)),
    "orange": ((255, 165, 0), (255, 127, 14), (245, 140, 30)),
    "yellow": ((255, 255, 0), (250, 225, 40), (240, 230, 60)),
    "green": ((0, 128, 0), (44, 160, 44), (40, 190, 70)),
    "blue": ((0, 0, 255), (31, 119, 180), (50, 90, 225)),
    "purple": ((128, 0, 128), (148, 103, 189), (125, 45, 175)),
    "pink": ((255, 192, 203), (240, 125, 190), (255, 150, 190)),
    "brown": ((139, 69, 19), (140, 86, 75), (125, 75, 40)),
}
GREYS = {"white": (240, 255), "grey": (125, 200), "black": (0, 28)}


def paint(rng: Random, colour: str) -> RGB:
    """Return a shade of a named colour."""
    anchor = rng.choice(ANCHORS[colour])
    spread = 0 if rng.random() < 0.3 else 12
    red, green, blue = (max(0, min(255, v + rng.randint(-spread, spread))) for v in anchor)
    return red, green, blue


def backdrop(rng: Random, name: str) -> RGB:
    """Return a shade of white, grey or black."""
    low, high = GREYS[name]
    level = high if name == "white" and rng.random() < 0.4 else rng.randint(low, high)
    level = 0 if name == "black" and rng.random() < 0.4 else level
    return level, level, level


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, scene: Scene, k: int, rng: Random) -> None:
    """Draw one shape on a canvas that is ``k`` times the image's size."""
    size = shape.radius * math.sqrt(scene.width * scene.height) * k
    x, y = shape.x * scene.width * k, shape.y * scene.height * k
    fill, edge, thick = paint(rng, shape.colour), None, 0
    if rng.random() < 0.12:
        edge, thick = (0, 0, 0), max(1, round(size * rng.uniform(0.04, 0.1)))
    if shape.kind == "circle":
        size *= 1.03
        pen.ellipse((x - size, y - size, x + size, y + size), fill, edge, thick)
        return
    seed, kind = shape.seed, shape.kind
    unit = corners(kind, rng) if seed is None else outline(kind, seed)
    points = [(x + size * px, y + size * py) for px, py in unit]
    pen.polygon(points, fill, edge, thick)


@lru_cache(maxsize=1)
def handwriting() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return scikit-learn's 8 by 8 digits and their values.

    The environment variable ``DEMO_MODEL_DIGITS`` names an .npz file with the arrays ``images``
    and ``target`` where scikit-learn is not installed.
    """
    named = os.environ.get("DEMO_MODEL_DIGITS")
    if named:
        with np.load(named) as arrays:
            return arrays["images"], arrays["target"]
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.uint8), data.target.astype(np.uint8)


def _draw_digit(image: Image.Image, digit: Digit, ink: RGB, rng: Random) -> None:
    """Draw one digit in ink of the given colour."""
    height = max(8, round(digit.height * image.height))
    x, y = digit.x * image.width, digit.y * image.height
    if digit.sample is None:
        pen = ImageDraw.Draw(image)
        pen.text((x, y), str(digit.value), ink, font(digit.font, height), anchor="mm")
        return
    cells = handwriting()[0][digit.sample].astype(np.float32) * (255 / 16)
    chance = rng.random()
    filter = Image.Resampling.BICUBIC if chance < 0.5 else Image.Resampling.BILINEAR
    filter = Image.Resampling.BOX if chance > 0.75 else filter
    size = (max(6, round(height * digit.stretch)), height)
    mask = Image.fromarray(cells.astype(np.uint8)).resize(size, filter)
    if digit.turn:
        mask = mask.rotate(digit.turn, Image.Resampling.BILINEAR, expand=True)
    image.paste(ink, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)


def _ink(background: RGB, rng: Random) -> RGB:
    """Return a colour for text that stands out from the background."""
    dark = background[0] > 110
    if rng.random() < 0.5:
        return (0, 0, 0) if dark else (255, 255, 255)
    while True:
        red, green, blue = (rng.randint(0, 255) for _ in range(3))
        light = 0.3 * red + 0.59 * green + 0.11 * blue
        if abs(light - background[0]) > 85:
            return red, green, blue


def _draw_text(image: Image.Image, scene: Scene, ink: RGB) -> list[tuple[str, float, float]]:
    """Print the text; return each character with its center."""
    text = scene.text
    if text is None:
        return []
    at_100 = font(text.font, 100).getlength(text.text)
    size = min(100 * text.width * image.width / at_100, 0.62 * image.height)
    face = font(text.font, max(9, round(size)))
    length = face.getlength(text.text)
    left = min(max(text.x * image.width - length / 2, 1), max(1, image.width - length - 1))
    low, high = face.size * 0.55, image.height - face.size * 0.55
    middle = min(max(text.y * image.height, low), high)
    ImageDraw.Draw(image).text((left, middle), text.text, ink, face, anchor="lm")
    marks = []
    for i, character in enumerate(text.text):
        x = left + face.getlength(text.text[:i]) + face.getlength(character) / 2
        marks.append((character, x / image.width, middle / image.height))
    return marks


def _draw_chart(
    image: Image.Image, scene: Scene, ground: RGB, rng: Random
) -> list[tuple[str, float, float]]:
    """Draw a bar chart; return each character of letters and numbers with its center."""
    chart = scene.chart
    assert chart is not None
    pen, width, height = ImageDraw.Draw(image), image.width, image.height
    dark = ground[0] > 110
    level = rng.randint(0, 70) if dark else rng.randint(190, 255)
    ink = (level, level, level)
    face = font(rng.choice(NAMES[:4]), max(7, round(chart.letters * height)))
    left, right = chart.left * width, (1 - chart.right) * width
    upper, lower = chart.top * height, (1 - chart.bottom) * height
    line = max(1, round(height * rng.uniform(0.003, 0.01)))
    grid, ticked, frame = rng.random() < 0.3, rng.random() < 0.7, rng.random()
    characters: list[tuple[str, float, float]] = []

    def write(text: str, x: float, y: float, anchor: str) -> None:
        pen.text((x, y), text, ink, face, anchor=anchor)
        start = x - face.getlength(text) * {"r": 1.0, "m": 0.5}[anchor[0]]
        for i, character in enumerate(text):
            middle = start + face.getlength(text[:i]) + face.getlength(character) / 2
            characters.append((character, middle / width, y / height))

    for tick in chart.ticks:
        y = lower - (lower - upper) * tick / chart.limit
        if grid and tick:
            soft = round((level + 2 * ground[0]) / 3)
            pen.line((left, y, right, y), (soft, soft, soft), line)
        if ticked:
            pen.line((left - 0.02 * width, y, left, y), ink, line)
        write(str(tick), left - 0.028 * width, y, "rm")
    paints: dict[str, RGB] = {}
    edge = (0, 0, 0) if rng.random() < 0.15 else None
    for i, bar in enumerate(chart.bars):
        fill = paints.setdefault(bar.colour, paint(rng, bar.colour))
        x1, y1, x2, y2 = chart.box(i)
        corners = (x1 * width, y1 * height, x2 * width, y2 * height)
        pen.rectangle(corners, fill, edge, max(1, line) if edge else 0)
        if bar.letter:
            middle, y = (x1 + x2) / 2 * width, lower + (0.02 + 0.6 * chart.letters) * height
            write(bar.letter, middle, min(y, height - 0.5 * face.size), "mm")
    if frame < 0.85:
        pen.line((left, lower, right, lower), ink, line)
        pen.line((left, lower, left, upper), ink, line)
    if frame < 0.4:
        pen.line((left, upper, right, upper), ink, line)
        pen.line((right, lower, right, upper), ink, line)
    return characters


def draw(scene: Scene) -> tuple[Image.Image, list[tuple[str, float, float]]]:
    """Draw a scene.

    Parameters
    ----------
    scene
        What to draw; its seed decides on shades, angles and the like.

    Returns
    -------
    image
        The image, in the scene's size.
    characters
        Each printed character with its center, as fractions of width and height.
    """
    rng = Random(scene.seed)
    ground = backdrop(rng, scene.background)
    # Small images are mostly drawn larger and reduced, which gives them smooth edges.
    smooth = rng.random() < 0.75
    k = max(1, min(4, 360 // max(scene.width, scene.height))) if smooth and scene.shapes else 1
    image = Image.new("RGB", (scene.width * k, scene.height * k), ground)
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        _draw_shape(pen, shape, scene, k, rng)
    image = image.reduce(k) if k > 1 else image
    if scene.chart is not None:
        return image, _draw_chart(image, scene, ground, rng)
    ink = _ink(ground, rng)
    for digit in scene.digits:
        _draw_digit(image, digit, ink, rng)
    characters = _draw_text(image, scene, ink)
    if rng.random() < 0.06:
        noise = np.random.default_rng(scene.seed).integers(-12, 13, (*image.size[::-1], 3), np.int8)
        noisy = np.asarray(image).astype(np.int16) + noise
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    return image, characters


def model_input(image: Image.Image) -> NDArray[np.uint8]:
    """Return an image as the model's image processor resizes it, height by width by colour."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def targets(
    scene: Scene, characters: list[tuple[str, float, float]]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Return what to recognise in each patch and in each image token's cell.

    Parameters
    ----------
    scene
        What was drawn.
    characters
        The characters that ``draw`` returned.

    Returns
    -------
    patches
        ``PATCHES`` by ``PATCHES``: 0, or one more than the character's place in ``CHARACTERS``.
    cells
        ``CELLS`` by ``CELLS``: 0, or the number of the shape and colour, of the bar's colour at
        the upper end of a bar, or of the digit.
    boxes
        ``CELLS`` by ``CELLS`` by 4: edges of the shape or bar, as fractions; 0 where there is none.
    """
    patches = np.zeros((PATCHES, PATCHES), np.uint8)
    cells = np.zeros((CELLS, CELLS), np.uint8)
    boxes = np.zeros((CELLS, CELLS, 4), np.float32)
    for character, x, y in characters:
        patches[_cell(y, PATCHES), _cell(x, PATCHES)] = 1 + CHARACTERS.index(character)
    for shape in scene.shapes:
        mark = 1 + SHAPES.index(shape.kind) * len(COLOURS) + COLOURS.index(shape.colour)
        place = _cell(shape.y, CELLS), _cell(shape.x, CELLS)
        cells[place], boxes[place] = mark, scene.box(shape)
    for i, bar in enumerate(scene.chart.bars if scene.chart else ()):
        edges = scene.chart.box(i) if scene.chart else (0.0, 0.0, 0.0, 0.0)
        place = _cell(edges[1], CELLS), _cell((edges[0] + edges[2]) / 2, CELLS)
        cells[place] = 1 + len(SHAPES) * len(COLOURS) + COLOURS.index(bar.colour)
        boxes[place] = edges
    for digit in scene.digits:
        cells[_cell(digit.y, CELLS), _cell(digit.x, CELLS)] = MARKS - 10 + digit.value
    return patches, cells, boxes


def _cell(value: float, count: int) -> int:
    """Return the cell that a fraction lies in."""
    return min(count - 1, max(0, int(value * count)))
