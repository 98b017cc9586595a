"""Descriptions of a scene: in one sentence, in detail, and as JSON."""

from __future__ import annotations

import json
from random import Random

from tools.demo_model.charts import about
from tools.demo_model.scene import Scene
from tools.demo_model.turns import Turn, article, capital, joined, pick


def summary(scene: Scene) -> str | None:
    """Return what a scene holds, without a capital or a full stop."""
    shapes = scene.ordered
    if shapes is None:
        return None
    parts = [article(shape.name) for shape in shapes]
    if scene.digits:
        digits = sorted(scene.digits, key=lambda digit: digit.x)
        values = [str(digit.value) for digit in digits]
        parts.append(f"the digit{'s' if len(values) > 1 else ''} {joined(values)}")
    if scene.text:
        parts.append(said(scene))
    if scene.chart:
        parts.append(about(scene))
    return f"{joined(parts)} on a {scene.background} background"


def said(scene: Scene) -> str:
    """Return the printed text with its kind."""
    assert scene.text is not None
    text = scene.text
    return f"the number {text.text}" if text.is_number else f'the word "{text.text}"'


def describe(rng: Random, scene: Scene) -> Turn | None:
    """Ask for the image in one sentence."""
    answer = summary(scene)
    question = pick(
        rng,
        "Describe the {pic}.",
        "Describe this {pic}.",
        "What is in the {pic}?",
        "What do you see?",
        "What can you see in this {pic}?",
        "What does the {pic} show?",
        "What is this?",
        "Caption this {pic}.",
        "Describe the {pic} in one sentence.",
        "What is shown here?",
    )
    return Turn(question, f"{capital(answer)}.", "describe") if answer else None


def detail(rng: Random, scene: Scene) -> Turn | None:
    """Ask for several sentences, one for each shape."""
    shapes = scene.ordered
    if not shapes or any(shape.place is None or shape.size is None for shape in shapes):
        return None
    count = len(shapes)
    start = "is 1 shape" if count == 1 else f"are {count} shapes"
    sentences = [f"There {start} on a {scene.background} background."]
    for shape in shapes:
        sentences.append(f"{capital(article(str(shape.size)))} {shape.name} is {shape.place}.")
    if scene.text:
        sentences.append(f"{capital(said(scene))} is printed there.")
    question = pick(
        rng,
        "Describe the {pic} in detail.",
        "Describe this {pic} in detail.",
        "Give a detailed description of the {pic}.",
        "Tell me everything about the {pic}.",
        "Write a long description of the {pic}.",
        "Describe every shape with its colour, size and place.",
    )
    return Turn(question, " ".join(sentences), "detail")


def as_json(rng: Random, scene: Scene) -> Turn | None:
    """Ask for the image as JSON."""
    shapes = scene.ordered
    if shapes is None:
        return None
    held: dict[str, object] = {"background": scene.background}
    if shapes:
        held["shapes"] = [{"shape": shape.kind, "colour": shape.colour} for shape in shapes]
    if scene.digits:
        digits = sorted(scene.digits, key=lambda digit: digit.x)
        held["digits"] = [digit.value for digit in digits]
    if scene.text:
        held["text"] = scene.text.text
    if scene.chart:
        held["bars"] = [{"bar": bar.name, "value": bar.value} for bar in scene.chart.bars]
    question = pick(
        rng,
        "Describe the {pic} as JSON.",
        "Describe this {pic} in JSON.",
        "Give me JSON.",
        "Return the contents of the {pic} as JSON.",
        "What is in the {pic}? Answer in JSON.",
        "List the shapes as JSON.",
        "Output JSON only.",
    )
    return Turn(question, json.dumps(held), "chart values" if scene.chart else "json")
