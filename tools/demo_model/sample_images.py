"""Draw the five sample images: ``python -m tools.demo_model.sample_images``."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from tools.demo_model.draw import draw
from tools.demo_model.fonts import AILERON
from tools.demo_model.scene import Digit, Scene, Shape, Text

SEED = 8


def scenes() -> dict[str, Scene]:
    """Return what the images hold, by file name."""
    shapes = [
        Shape("circle", "red", 0.22, 0.27, 0.13),
        Shape("square", "blue", 0.5, 0.74, 0.13),
        Shape("star", "yellow", 0.78, 0.27, 0.14),
    ]
    two = [
        Shape("triangle", "green", 0.25, 0.72, 0.14),
        Shape("circle", "purple", 0.5, 0.25, 0.12),
        Shape("circle", "orange", 0.64, 0.76, 0.1),
        Shape("cross", "red", 0.82, 0.3, 0.13),
    ]
    return {
        "shapes.png": Scene(320, 320, "white", shapes=shapes, seed=SEED),
        "two.png": Scene(320, 256, "black", shapes=two, seed=SEED),
        "word.png": Scene(
            320, 256, "white", text=Text("violin", "DejaVuSans", 0.5, 0.5, 0.7), seed=SEED
        ),
        "number.png": Scene(320, 256, "grey", text=Text("4827", AILERON, 0.5, 0.5, 0.6), seed=SEED),
        "digit.png": Scene(
            256, 256, "white", digits=[Digit(7, handwritten(7), 0.5, 0.5, 0.8, AILERON)], seed=SEED
        ),
    }


def handwritten(value: int) -> int:
    """Return the first held-out row of the handwriting data with a value."""
    from tools.demo_model.samples import digit_rows

    return digit_rows(train=False)[value][0]


def draw_all() -> dict[str, Image.Image]:
    """Return the images by file name."""
    return {name: draw(scene)[0] for name, scene in scenes().items()}


def main() -> None:
    """Write the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("notebooks/pictures"))
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in draw_all().items():
        image.save(folder / name, optimize=True)
        print(name, image.size, (folder / name).stat().st_size)


if __name__ == "__main__":
    main()
