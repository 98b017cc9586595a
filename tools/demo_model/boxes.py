"""Questions for the boxes of shapes, answered in the dialect of Qwen3-VL.

A box is ``{"bbox_2d": [x1, y1, x2, y2], "label": "red circle"}``: left, upper, right and lower
edge, from 0 to 1000 of the image's width and height. Several boxes are a list of such objects. A
point is ``{"point_2d": [x, y], "label": ...}``. In a conversation with several images the image's
number is added, such as ``"image": 2``.
"""

from __future__ import annotations

import json
from random import Random

from tools.demo_model.scene import COLOURS, SHAPES, Scene, Shape
from tools.demo_model.turns import Turn, many, pick

SCALE = 1000
STEP = 5  # the model sees 128 pixels a side: a finer step would be noise to learn


def edges(box: tuple[float, float, float, float]) -> list[int]:
    """Return a box, given as fractions, from 0 to 1000 in steps."""
    return [STEP * round(value * SCALE / STEP) for value in box]


def entry(scene: Scene, shape: Shape) -> dict[str, object]:
    """Return the box of one shape with its label."""
    return {"bbox_2d": edges(scene.box(shape)), "label": shape.name}


def _single(rng: Random, scene: Scene) -> tuple[Shape, str] | None:
    """Return a shape, and words that mean no other shape of the image."""
    if not scene.shapes:
        return None
    shape = rng.choice(scene.shapes)
    nouns = [noun for noun, count in (
        (shape.name, sum(s.name == shape.name for s in scene.shapes)),
        (shape.kind, sum(s.kind == shape.kind for s in scene.shapes)),
        (f"{shape.colour} shape", sum(s.colour == shape.colour for s in scene.shapes)),
        ("shape", len(scene.shapes)),
    ) if count == 1]  # fmt: skip
    return (shape, rng.choice(nouns[:1] * 2 + nouns)) if nouns else None


def one_box(rng: Random, scene: Scene) -> Turn | None:
    """Ask for the box of one shape, by its name, its kind or its colour."""
    found = _single(rng, scene)
    if found is None:
        return None
    shape, noun = found
    named = (scene.shapes.index(shape),)
    return Turn(asked(rng, noun), json.dumps(entry(scene, shape)), "boxes", named=named)


def point(rng: Random, scene: Scene) -> Turn | None:
    """Ask for the middle of one shape."""
    found = _single(rng, scene)
    if found is None:
        return None
    shape, noun = found
    question = pick(rng, f"Point to the {noun}.", f"Point at the {noun}.",
                    f"Where is the {noun}? Give a point.", f"Give the center of the {noun}.",
                    f"Point to the {noun} in the {{pic}}.")  # fmt: skip
    left, upper, right, lower = edges(scene.box(shape))
    middle = [STEP * round((left + right) / 2 / STEP), STEP * round((upper + lower) / 2 / STEP)]
    answer = json.dumps({"point_2d": middle, "label": shape.name})
    return Turn(question, answer, "boxes", named=(scene.shapes.index(shape),))


def numbered(turn: Turn, image: int) -> Turn:
    """Say in the answer which image its boxes are on.

    Parameters
    ----------
    turn
        A question for boxes, or another, which stays as it is.
    image
        The image's number in the conversation, from 1.
    """
    if turn.kind == "boxes":
        held = json.loads(turn.answer)
        for one in held if isinstance(held, list) else [held]:
            one["image"] = image
        turn.answer = json.dumps(held)
    return turn


def asked(rng: Random, noun: str) -> str:
    """Return a question for the box of the one thing with a name."""
    return pick(
        rng,
        f"Where is the {noun}? Give its box.",
        f"Where is the {noun}? Give its box.",
        f"Where is the {noun}? Give the box.",
        f"Where is the {noun}? Give its bounding box.",
        f"Where is the {noun}? Answer with a box.",
        f"Give the box of the {noun}.",
        f"Give the bounding box of the {noun}.",
        f"Return the bounding box of the {noun}.",
        f"What is the bounding box of the {noun}?",
        f"Find the {noun} and give its box.",
        f"Find the {noun}.",
        f"Detect the {noun}.",
        f"Locate the {noun}.",
        f"Locate the {noun} in the {{pic}}.",
        f"Locate the {noun}, report the bbox coordinates in JSON format.",
        f"Draw a box around the {noun}.",
        f"Box the {noun}.",
    )


def several_boxes(rng: Random, scene: Scene) -> Turn | None:
    """Ask for the boxes of all shapes, of one kind or of one colour, from left to right."""
    ordered = scene.ordered
    if not ordered:
        return None
    near, chance = rng.choice(ordered), rng.random()
    noun, chosen = "shape", ordered
    if chance < 0.3:
        noun, chosen = near.kind, [s for s in ordered if s.kind == near.kind]
    elif chance < 0.5:
        noun, chosen = f"{near.colour} shape", [s for s in ordered if s.colour == near.colour]
    plural = many(noun)
    question = pick(
        rng,
        f"Where are the {plural}? Give their boxes.",
        f"Where are the {plural}? Give the bounding boxes.",
        f"Give the boxes of all {plural}.",
        f"Give the bounding boxes of the {plural}.",
        f"Give the box of every {noun}.",
        f"Detect all {plural}.",
        f"Detect the {plural}.",
        f"Detect all {plural} in the {{pic}} and return their locations in JSON format.",
        f"Locate every {noun}, report the bbox coordinates in JSON format.",
        f"Find all {plural} and give their boxes.",
        f"Find the {plural}.",
        f"Box all {plural}.",
        f"Draw boxes around the {plural}.",
    )
    answer = json.dumps([entry(scene, shape) for shape in chosen])
    return Turn(question, answer, "boxes", named=tuple(scene.shapes.index(s) for s in chosen))


def no_box(rng: Random, scene: Scene) -> Turn | None:
    """Ask for the box of a shape that the image does not hold."""
    near = rng.choice(scene.shapes) if scene.shapes else None
    kind = near.kind if near and rng.random() < 0.4 else rng.choice(SHAPES)
    noun = f"{rng.choice(COLOURS)} {kind}"
    if noun in {shape.name for shape in scene.shapes}:
        return None
    if rng.random() < 0.4 and kind not in {shape.kind for shape in scene.shapes}:
        noun = kind
    return Turn(asked(rng, noun), f"There is no {noun}.", "absent")
