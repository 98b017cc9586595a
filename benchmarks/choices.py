"""A question with 20 choices against a short answer to the same question about a new image.

python -m benchmarks.choices [--model MODEL] [--pairs N] [--tokens N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.figures import interval, ratios, summary
from benchmarks.workload import DrawnImages

MOST = 1.5
"""Times the short answer that 20 choices may take."""

WORDS = ("red", "green", "blue", "yellow", "black")
SHAPES = ("circle", "square", "star", "triangle")
QUESTION = "What is in the picture?"


def choices() -> list[str]:
    """Return 20 choices of several tokens, which begin alike."""
    return [f"A {color} {shape}." for color in WORDS for shape in SHAPES]


def measure(model: str, folder: Path, *, pairs: int, tokens: int) -> dict[str, Any]:
    """Answer and choose in turn, each about an image that was not seen before.

    Parameters
    ----------
    model : str
    folder : Path
        For images.
    pairs : int
    tokens : int
        Length of the short answer at most.
    """
    import mlx_magic

    images = DrawnImages(folder, (224, 224))
    mlx_magic.ask(QUESTION, images.draw(), model, max_tokens=2)
    mlx_magic.ask(QUESTION, images.draw(), model, choices=choices())
    answers, chosen, written = list[float](), list[float](), list[int]()
    for _ in range(pairs):
        # The same image for both would be in the caches of the second.
        for seconds, options in (
            (answers, {"max_tokens": tokens, "temperature": 0.0}),
            (chosen, {"choices": choices()}),
        ):
            image = images.draw()
            began = time.perf_counter()
            result = mlx_magic.ask(QUESTION, image, model, **options)
            seconds.append(time.perf_counter() - began)
            if seconds is answers:
                written.append(result.usage.completion_tokens)
    each = ratios(chosen, answers)
    return {
        "model": model,
        "machine": machine.describe(),
        "choices": len(choices()),
        "tokens of an answer": summary(map(float, written)).median,
        "answer, ms": _milliseconds(answers),
        "choices, ms": _milliseconds(chosen),
        "choices / answer": {
            "median": summary(each).median,
            "interval": interval(each),
            "at most": MOST,
        },
    }


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    found = summary(1000 * each for each in seconds)
    return {"median": found.median, "lowest": found.lowest, "highest": found.highest, "n": found.n}


def main() -> None:
    """Measure and print."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=8, help="length of the short answer at most")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.model, Path(folder), pairs=given.pairs, tokens=given.tokens)
    text = json.dumps(found, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
