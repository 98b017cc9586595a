"""Questions on two images or more."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.demo_model import boxes, charts, questions, reading
from tools.demo_model.describe import summary
from tools.demo_model.scene import COLOURS, SHAPES, Scene
from tools.demo_model.turns import Turn, article, capital, pick

ORDINALS = ("first", "second", "third", "fourth", "fifth")
BOTH = {(True, True): "Both pictures show", (False, False): "Neither picture shows"}


def which(rng: Random, scenes: list[Scene]) -> Turn | None:
    """Ask which of two images shows something."""
    held = scenes[0].shapes + scenes[1].shapes
    near = rng.choice(held) if held else None
    kind = near.kind if near and rng.random() < 0.85 else rng.choice(SHAPES)
    if rng.random() < 0.55:
        noun, found = kind, [any(s.kind == kind for s in scene.shapes) for scene in scenes]
    else:
        tint = near.colour if near and rng.random() < 0.85 else rng.choice(COLOURS)
        noun = f"{tint} {kind}"
        found = [any(s.name == noun for s in scene.shapes) for scene in scenes]
    question = pick(
        rng,
        f"Which {{pic}} shows {article(noun)}?",
        f"Which {{pic}} has {article(noun)}?",
        f"In which {{pic}} is {article(noun)}?",
        f"Which of the two {{pic}}s shows {article(noun)}?",
    )
    both = found[0], found[1]
    start = BOTH.get(both) or f"The {ORDINALS[found.index(True)]} picture shows"
    word = "Both" if all(found) else "Neither" if not any(found) else None
    return Turn(question, f"{start} {article(noun)}.", "which image",
                word or capital(ORDINALS[found.index(True)]))  # fmt: skip


def compare(rng: Random, scenes: list[Scene]) -> Turn | None:
    """Ask which of two images has more shapes."""
    first, second = (len(scene.shapes) for scene in scenes)
    if not first + second:
        return None
    question = pick(
        rng,
        "Which {pic} has more shapes?",
        "Which {pic} shows more shapes?",
        "Which of the two {pic}s has more shapes?",
        "Are there more shapes in the first or the second {pic}?",
    )
    if first == second:
        return Turn(question, f"Both pictures have {first}.", "compare", "Both")
    name = ORDINALS[first < second]
    answer = f"The {name} picture has more: {max(first, second)} against {min(first, second)}."
    return Turn(question, answer, "compare", capital(name))


def describe_one(rng: Random, scenes: list[Scene]) -> Turn | None:
    """Ask for one of the images."""
    i = rng.randrange(len(scenes))
    answer = summary(scenes[i])
    question = pick(
        rng,
        f"Describe the {ORDINALS[i]} {{pic}}.",
        f"What is in the {ORDINALS[i]} {{pic}}?",
        f"What does the {ORDINALS[i]} {{pic}} show?",
        f"What do you see in the {ORDINALS[i]} {{pic}}?",
    )
    return Turn(question, f"{capital(answer)}.", "one of two") if answer else None


def describe_both(rng: Random, scenes: list[Scene]) -> Turn | None:
    """Ask for both images."""
    first, second = (summary(scene) for scene in scenes)
    question = pick(rng, "Describe both {pic}s.", "Describe the two {pic}s.",
                    "What is in the two {pic}s?", "Describe the {pic}s.",
                    "What is in each {pic}?")  # fmt: skip
    if not first or not second or len(scenes[0].shapes) + len(scenes[1].shapes) > 6:
        return None
    return Turn(question, f"First: {first}. Second: {second}.", "both")


def ask_one(rng: Random, scenes: list[Scene]) -> Turn | None:
    """Ask what is asked of a single image, naming the image."""
    i = rng.randrange(len(scenes))
    scene, place = scenes[i], f"in the {ORDINALS[i]} {pick(rng, '{pic}')}"
    if scene.shapes and rng.random() < 0.25:
        return _box(rng, scene, i, place)
    turn: Turn | None
    if scene.chart is not None:
        turn = charts.extreme(rng, scene) if rng.random() < 0.5 else charts.value(rng, scene)
        question = f"{turn.question[:-1]} {place}{turn.question[-1]}"
    elif scene.text is not None:
        turn = reading.read(rng, scene)
        noun = "number" if scene.text.is_number else "word"
        question = pick(rng, f"What {noun} is {place}?", f"Read the {noun} {place}.",
                        f"Read the text {place}.", f"What is written {place}?")  # fmt: skip
    elif len(scene.digits) == 1:
        turn = reading.digit(rng, scene)
        question = pick(rng, f"What digit is {place}?", f"Read the digit {place}.")
    elif len(scene.shapes) == 1 and rng.random() < 0.5:
        turn = Turn("", f"It is {article(scene.shapes[0].kind)}.", "")
        question = pick(rng, f"What shape is {place}?", f"Name the shape {place}.")
    elif rng.random() < 0.5:
        turn = questions.total(rng, scene)
        question = f"How many shapes are {place}?"
    else:
        turn = questions.colour(rng, scene)
        if turn is not None:
            noun = turn.answer.split()[1]
            question = pick(rng, f"What colour is the {noun} {place}?",
                            f"Which colour is the {noun} {place}?")  # fmt: skip
    return Turn(question, turn.answer, "one of two", turn.word) if turn else None


def _box(rng: Random, scene: Scene, i: int, place: str) -> Turn | None:
    """Ask for the box of a shape in one of several images."""
    turn = boxes.one_box(rng, scene)
    if turn is None:
        return None
    noun = scene.shapes[turn.named[0]].name
    if sum(shape.name == noun for shape in scene.shapes) > 1:
        return None
    turn.question = pick(rng, f"Where is the {noun} {place}? Give its box.",
                         f"Give the box of the {noun} {place}.", f"Locate the {noun} {place}.",
                         f"Give the bounding box of the {noun} {place}.",
                         f"Find the {noun} {place}.")  # fmt: skip
    turn.image = i
    return boxes.numbered(turn, i + 1)


PAIR_ASKS: tuple[tuple[Callable[[Random, list[Scene]], Turn | None], int], ...] = (
    (which, 30), (compare, 20), (ask_one, 28), (describe_one, 12), (describe_both, 6),
)  # fmt: skip
MANY_ASKS: tuple[tuple[Callable[[Random, list[Scene]], Turn | None], int], ...] = (
    (ask_one, 70), (describe_one, 30),
)  # fmt: skip
