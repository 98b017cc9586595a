"""Questions on one image, and how often each is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from tools.demo_model import charts
from tools.demo_model.boxes import no_box, one_box, point, several_boxes
from tools.demo_model.describe import as_json, describe, detail
from tools.demo_model.fields import choice, request
from tools.demo_model.reading import digit, read
from tools.demo_model.scene import COLOURS, SHAPES, Scene, Shape
from tools.demo_model.turns import NUMBERS, Turn, article, capital, many, pick, there_are

Ask = Callable[[Random, Scene], Turn | None]


def _only(rng: Random, scene: Scene, name: str) -> Shape | None:
    """Return a shape whose kind, colour or name (an attribute) no other shape has."""
    counts = Counter(getattr(shape, name) for shape in scene.shapes)
    single = [shape for shape in scene.shapes if counts[getattr(shape, name)] == 1]
    return rng.choice(single) if single else None


def shape(rng: Random, scene: Scene) -> Turn | None:
    """Ask which shape it is, or which shape has a colour."""
    if len(scene.shapes) == 1 and rng.random() < 0.8:
        only = scene.shapes[0]
        question = pick(
            rng,
            "What shape is this?",
            "Which shape is this?",
            "What shape is it?",
            "What shape is in the {pic}?",
            "What shape do you see?",
            "Name the shape.",
            "What is the shape?",
            "Which shape is in this {pic}?",
        )
        return Turn(question, f"It is {article(only.kind)}.", "shape", capital(only.kind))
    one = _only(rng, scene, "colour")
    if one is None:
        return None
    question = pick(
        rng,
        f"What shape is the {one.colour} one?",
        f"Which shape is {one.colour}?",
        f"What shape is {one.colour}?",
        f"What is the {one.colour} shape?",
    )
    return Turn(question, f"The {one.colour} shape is {article(one.kind)}.", "shape",
                capital(one.kind))  # fmt: skip


def colour(rng: Random, scene: Scene) -> Turn | None:
    """Ask for the colour of a shape."""
    one = _only(rng, scene, "kind")
    if one is None:
        return None
    name = one.kind
    choices = [
        f"What colour is the {name}?",
        f"Which colour is the {name}?",
        f"What is the colour of the {name}?",
        f"Tell me the colour of the {name}.",
        f"The {name} is what colour?",
    ]
    if len(scene.shapes) == 1:
        choices += ["What colour is it?", "What colour is the shape?", "What colour is this?"]
        choices += ["Which colour is the shape?", "Name the colour."]
    return Turn(pick(rng, *choices), f"The {name} is {one.colour}.", "colour", capital(one.colour))


def count(rng: Random, scene: Scene) -> Turn | None:
    """Count the shapes of one kind, or of one colour."""
    here = rng.random() < 0.75
    if rng.random() < 0.6:
        noun = rng.choice(scene.shapes).kind if scene.shapes and here else rng.choice(SHAPES)
        found = sum(shape.kind == noun for shape in scene.shapes)
    else:
        tint = rng.choice(scene.shapes).colour if scene.shapes and here else rng.choice(COLOURS)
        noun = f"{tint} shape"
        found = sum(shape.colour == tint for shape in scene.shapes)
    question = pick(
        rng,
        f"How many {many(noun)} are there?",
        f"How many {many(noun)} are in the {{pic}}?",
        f"How many {many(noun)} do you see?",
        f"Count the {many(noun)}.",
        f"How many {many(noun)} can you see?",
    )
    return Turn(question, there_are(found, noun), "count", _number(found))


def total(rng: Random, scene: Scene) -> Turn | None:
    """Count all shapes."""
    found = len(scene.shapes)
    question = pick(
        rng,
        "How many shapes are there?",
        "How many shapes are in the {pic}?",
        "How many shapes do you see?",
        "Count the shapes.",
        "How many shapes can you see?",
        "How many shapes are there in total?",
    )
    return Turn(question, there_are(found, "shape"), "total", _number(found))


def yes_no(rng: Random, scene: Scene) -> Turn | None:
    """Ask whether something is there."""
    near = rng.choice(scene.shapes) if scene.shapes else Shape("circle", "red", 0, 0, 0)
    kind = near.kind if rng.random() < 0.6 else rng.choice(SHAPES)
    tint = near.colour if rng.random() < 0.6 else rng.choice(COLOURS)
    style = rng.random()
    if style < 0.5:
        noun, found = f"{tint} {kind}", any(s.name == f"{tint} {kind}" for s in scene.shapes)
    elif style < 0.8:
        noun, found = kind, any(s.kind == kind for s in scene.shapes)
    else:
        only = _only(rng, scene, "kind")
        if only is None:
            return None
        tint = only.colour if rng.random() < 0.5 else rng.choice(COLOURS)
        found = only.colour == tint
        answer = f"Yes, the {only.kind} is {tint}." if found else (
            f"No, the {only.kind} is {only.colour}.")  # fmt: skip
        return Turn(f"Is the {only.kind} {tint}?", answer, "yes/no", "Yes" if found else "No")
    question = pick(
        rng,
        f"Is there {article(noun)}?",
        f"Is there {article(noun)} in the {{pic}}?",
        f"Do you see {article(noun)}?",
        f"Can you see {article(noun)}?",
    )
    answer = f"Yes, there is {article(noun)}." if found else f"No, there is no {noun}."
    return Turn(question, answer, "yes/no", "Yes" if found else "No")


def where(rng: Random, scene: Scene) -> Turn | None:
    """Ask where a shape is, alone or against another."""
    first = _only(rng, scene, "kind")
    if first is None:
        return None
    name = first.kind if rng.random() < 0.7 else first.name
    others = [s for s in scene.shapes if s is not first and s.kind != first.kind]
    others = [s for s in others if sum(o.kind == s.kind for o in scene.shapes) == 1]
    if not others or rng.random() < 0.45:
        if first.place is None:
            return None
        question = pick(rng, f"Where is the {name}?", f"Where in the {{pic}} is the {name}?",
                        f"Where do you see the {name}?")  # fmt: skip
        return Turn(question, f"The {name} is {first.place}.", "where")
    second = rng.choice(others)
    across, down = first.x - second.x, first.y - second.y
    if rng.random() < 0.5:
        side, gap, pair = ("left of" if across < 0 else "right of"), abs(across), "left or right of"
        pair = rng.choice((pair, "to the left or right of", "to the left or to the right of"))
    else:
        side, gap, pair = ("above" if down < 0 else "below"), abs(down), "above or below"
    if gap < 0.13:
        return None
    question = f"Is the {first.kind} {pair} the {second.kind}?"
    return Turn(question, f"The {first.kind} is {side} the {second.kind}.", "where",
                capital(side.split()[0]))  # fmt: skip


def background(rng: Random, scene: Scene) -> Turn | None:
    """Ask for the background."""
    question = pick(
        rng,
        "What colour is the background?",
        "What is the background?",
        "What is the background colour?",
        "What is the colour of the background?",
        "Which colour is the background?",
    )
    return Turn(question, f"The background is {scene.background}.", "background",
                capital(scene.background))  # fmt: skip


def absent(rng: Random, scene: Scene) -> Turn | None:
    """Ask about a shape, digit or text that the image does not hold."""
    here = {shape.kind for shape in scene.shapes}
    missing = rng.choice([kind for kind in SHAPES if kind not in here] or ["none"])
    asks: list[tuple[str, str]] = []
    if missing != "none":
        question = pick(rng, f"What colour is the {missing}?", f"Where is the {missing}?",
                        f"What is the colour of the {missing}?")  # fmt: skip
        asks.append((question, f"There is no {missing}."))
    if scene.text is None:
        question = pick(rng, "What does it say?", "Read the text.", "What word is this?",
                        "What is written here?", "Read the word.", "What word do you see?",
                        "What does the text say?")  # fmt: skip
        asks.append((question, "There is no text."))
    if scene.text is None and not scene.digits:
        question = pick(rng, "What digit is this?", "Which digit do you see?", "Read the digit.",
                        "What number is this?", "Read the number.")  # fmt: skip
        asks.append((question, "There is no digit."))
    if not scene.shapes:
        question = pick(rng, "What shape is this?", "Which shape is this?", "Name the shape.",
                        "What colour is the shape?", "What shape do you see?")  # fmt: skip
        asks.append((question, "There are no shapes."))
    return Turn(*rng.choice(asks), "absent") if asks else None


def _number(value: int) -> str:
    """Return a count as one word."""
    return "None" if value == 0 else capital(NUMBERS[value])


SHAPE_ASKS: tuple[tuple[Ask, int], ...] = (
    (shape, 10), (colour, 10), (count, 10), (total, 7), (yes_no, 10), (where, 15),
    (background, 5), (describe, 16), (detail, 13), (as_json, 8), (absent, 5),
    (one_box, 26), (several_boxes, 16), (point, 5), (no_box, 5), (request, 30), (choice, 10),
)  # fmt: skip
DIGIT_ASKS: tuple[tuple[Ask, int], ...] = (
    (digit, 60), (background, 6), (describe, 14), (as_json, 8), (absent, 8), (total, 2),
    (yes_no, 2), (count, 2), (request, 14), (choice, 4),
)  # fmt: skip
TEXT_ASKS: tuple[tuple[Ask, int], ...] = (
    (read, 62), (background, 5), (describe, 14), (as_json, 10), (absent, 6), (total, 3),
    (yes_no, 2), (count, 2), (shape, 3), (colour, 3), (detail, 2), (one_box, 6), (request, 20),
)  # fmt: skip
CHART_ASKS: tuple[tuple[Ask, int], ...] = (
    (charts.extreme, 24), (charts.between, 12), (charts.bar_count, 7), (charts.value, 40),
    (charts.values, 24), (charts.what, 7), (charts.no_shape, 4), (background, 3), (as_json, 4),
    (request, 16), (choice, 6),
)  # fmt: skip
