"""JSON on request: the fields are named in words, in a short form, or by a JSON schema.

The choices of a closed question are here as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.demo_model.scene import BACKGROUNDS, COLOURS, SHAPES, Scene, Shape
from tools.demo_model.turns import Turn, joined, many, pick

SIZES = ("small", "medium", "large")


@dataclass
class Field:
    """One field: its name, its value, and the values that it may have, if they are listed."""

    name: str
    value: Any
    domain: tuple[str, ...] = ()
    optional: bool = False


def _tint(rng: Random) -> str:
    return rng.choice(("color", "color", "colour"))


def _of_shape(rng: Random, shape: Shape, tint: str) -> list[Field]:
    """Return what there is to say of one shape."""
    found = [Field(rng.choice(("shape", "shape", "kind")), shape.kind, SHAPES)]
    found.append(Field(tint, shape.colour, COLOURS))
    if shape.size:
        found.append(Field("size", shape.size, SIZES))
    if shape.place:
        found.append(Field(rng.choice(("place", "position")), shape.place))
    if rng.random() < 0.3:
        found.append(Field(rng.choice(("label", "name")), shape.name))
    return found


def _of_image(rng: Random, scene: Scene, shapes: list[Shape]) -> list[Field]:
    """Return what there is to say of a whole image."""
    tint = _tint(rng)
    found = [Field("background", scene.background, BACKGROUNDS)]
    if scene.chart:
        bars = scene.chart.bars
        high, low = (f(bars, key=lambda bar: bar.value).name for f in (max, min))
        found += [Field("highest", high), Field("lowest", low)]
        found.append(Field(rng.choice(("count", "bars")), len(bars)))
        return found
    if shapes:
        found += _of_shape(rng, shapes[0], tint)[: 5 if len(shapes) == 1 else 2]
    found.append(Field(rng.choice(("count", "count", "total")), len(shapes)))
    if scene.text:
        names = ("number", "text") if scene.text.is_number else ("word", "text")
        found += [Field(rng.choice(names), scene.text.text)] * 3
    elif rng.random() < 0.15 and not scene.digits:
        found.append(Field("text", None, optional=True))
    if len(scene.digits) == 1:
        found += [Field("digit", scene.digits[0].value)] * 4
    elif scene.digits:
        row = sorted(scene.digits, key=lambda digit: digit.x)
        found += [Field("digits", [digit.value for digit in row])] * 4
    if shapes and rng.random() < 0.4:
        kind = rng.choice(shapes).kind if rng.random() < 0.6 else rng.choice(SHAPES)
        found.append(Field(many(kind), sum(shape.kind == kind for shape in shapes)))
    if shapes and rng.random() < 0.4:
        found.append(Field(f"{tint}s", [shape.colour for shape in shapes]))
    return found


def _rows(rng: Random, scene: Scene, shapes: list[Shape]) -> tuple[str, list[list[Field]]] | None:
    """Return a name for the objects of an image, and the fields of each."""
    if scene.chart:
        held = [[Field(n, getattr(bar, a)) for n, a in (("bar", "name"), ("value", "value"))]
                for bar in scene.chart.bars]  # fmt: skip
        return "bars", held
    if not shapes:
        return None
    seed, tint = rng.getrandbits(32), _tint(rng)
    every = [_of_shape(Random(seed), shape, tint) for shape in shapes]
    shared = [name for name in (f.name for f in every[0]) if all(
        name in {f.name for f in one} for one in every)]  # fmt: skip
    chosen = rng.sample(shared, min(len(shared), rng.choice((1, 2, 2, 2, 3))))
    held = [[next(f for f in one if f.name == name) for name in chosen] for one in every]
    return rng.choice(("shapes", "shapes", "objects", "items")), held


def request(rng: Random, scene: Scene) -> Turn | None:
    """Ask for JSON with named fields: an object, a list of objects, or both."""
    shapes = scene.ordered
    if shapes is None:
        return None
    intro = ""
    single = [s for s in shapes if sum(o.kind == s.kind for o in shapes) == 1]
    chance = rng.random()
    rows = _rows(rng, scene, shapes) if chance < 0.35 else None
    head: list[Field] = []
    if rows is None and single and len(shapes) > 1 and chance < 0.5:
        shape = rng.choice(single)
        intro = pick(rng, f"Describe the {shape.kind}.", f"What is the {shape.kind} like?",
                     f"Tell me about the {shape.kind}.")  # fmt: skip
        head = [f for f in _of_shape(rng, shape, _tint(rng)) if f.value != shape.kind]
    elif rows is None or rng.random() < 0.3:
        head = _of_image(rng, scene, shapes)
    if head:
        names = dict.fromkeys(f.name for f in rng.sample(head, len(head)))
        most = rng.choice((1, 2, 2, 3, 3, 4)) if rows is None else rng.choice((1, 1, 2))
        head = [next(f for f in head if f.name == name) for name in list(names)[:most]]
        if rows and rows[0] in {f.name for f in head}:
            return None
    if not intro and rng.random() < 0.7:
        intro = _intro(rng, scene)
    data: Any = {f.name: f.value for f in head}
    if rows:
        listed = [{f.name: f.value for f in one} for one in rows[1]]
        data = {**data, rows[0]: listed} if head or rng.random() < 0.5 else listed
    inner = rows[1][0] if rows else []
    form = rng.random()
    if form < 0.25:
        told, kind = _in_words(rng, data, inner, head), "fields"
    elif form < 0.6:
        told, kind = _short(rng, data, inner, head), "schema"
    else:
        told, kind = _schema(rng, data, inner, head), "schema"
    # Compact now and then: a grammar may leave no other way.
    tight = rng.random() < 0.2
    answer = json.dumps(data, separators=(",", ":")) if tight else json.dumps(data)
    if intro and rng.random() < 0.5:
        intro = intro.replace("colour", "color")
    question = intro + rng.choice(("\n", "\n\n", " ")) + told if intro else told
    return Turn(question, answer, kind, fixed=True)


def _intro(rng: Random, scene: Scene) -> str:
    """Return a question that goes before the request for JSON."""
    if scene.chart:
        return pick(rng, "Read the chart.", "Describe the chart.", "What does the {pic} show?")
    if scene.text:
        return pick(rng, "Read the text.", "What does it say?", "Describe the {pic}.",
                    "What is in the {pic}?", "What is written here?")  # fmt: skip
    if scene.digits:
        return pick(rng, "What digit is this?", "Read the digits.", "Describe the {pic}.",
                    "What is in the {pic}?")  # fmt: skip
    return pick(rng, "Describe the {pic}.", "What is in the {pic}?", "What do you see?",
                "Describe this {pic}.", "List the shapes.", "What does the {pic} show?",
                "Which shapes are there?", "What shapes are in the {pic}?", "What is this?",
                "Describe every shape.", "Describe the shapes.", "Name the shape.")  # fmt: skip


def _in_words(rng: Random, data: Any, inner: list[Field], head: list[Field]) -> str:
    """Return a request in words, or with dots for the values."""
    dotted = {f.name: "..." for f in inner}
    if not inner:
        names = list(data)
        named = joined(names)
        if rng.random() < 0.4:
            named = joined([f'"{name}"' for name in names])
        dots = "{" + ", ".join(f'"{name}": ...' for name in names) + "}"
        return pick(
            rng,
            f"Answer with JSON: {dots}",
            f"Answer with JSON: {dots}",
            f"Answer in JSON: {dots}",
            f"Reply with JSON only: {dots}",
            f"Answer with JSON with the fields {named}.",
            f"Answer in JSON with {named}.",
            f"Give {named} as JSON.",
            f"Give the {named} as JSON.",
            f"Return JSON with the keys {named}.",
            f"Return a JSON object with the fields {named}.",
            f"Answer as JSON with the keys {named}.",
        )
    row = json.dumps(dotted).replace('"..."', "...")
    row = f"[{row}, ...]" if rng.random() < 0.7 else f"[{row}]"
    if isinstance(data, dict):
        parts = [f'"{f.name}": ...' for f in head] + [f'"{list(data)[-1]}": {row}']
        row = "{" + ", ".join(parts) + "}"
    elif rng.random() < 0.4:
        named = joined([f.name for f in inner])
        return pick(rng, f"Answer with a JSON list of objects with the fields {named}.",
                    f"Return a JSON list with {named} of each.",
                    f"Give a JSON list with the keys {named}.")  # fmt: skip
    return pick(rng, "Answer with JSON: ", "Answer in JSON: ", "Reply with JSON only: ") + row


def _short(rng: Random, data: Any, inner: list[Field], head: list[Field]) -> str:
    """Return a request in a short form of types."""
    words = rng.choice((("string", "integer"), ("string", "integer"), ("str", "int"),
                        ("string", "number")))  # fmt: skip
    listing = rng.random() < 0.5

    def kind(field: Field) -> str:
        if field.optional:
            return f"{words[0]} | null"
        if isinstance(field.value, list):
            of = words[1] if field.value and isinstance(field.value[0], int) else words[0]
            return f"[{of}]" if rng.random() < 0.7 else f"[{of}, ...]"
        if isinstance(field.value, int):
            return words[1]
        if field.domain and listing:
            return " | ".join(f'"{choice}"' for choice in _some(rng, field))
        return words[0]

    def told(fields: list[Field]) -> list[str]:
        return [f'"{f.name}": {kind(f)}' for f in fields]

    text = "{" + ", ".join(told(inner or head)) + "}"
    if inner:
        text = f"[{text}]" if rng.random() < 0.8 else f"[{text}, ...]"
        if isinstance(data, dict):
            text = "{" + ", ".join([*told(head), f'"{list(data)[-1]}": {text}']) + "}"
    return pick(rng, "Answer with JSON: ", "Answer with JSON: ", "Answer with JSON like this: ",
                "Reply with JSON only: ", "Respond with JSON in this form: ",
                "Answer with JSON of this form: ", "Return JSON: ") + text  # fmt: skip


def _some(rng: Random, field: Field) -> list[str]:
    """Return some of the values that a field may have, the right one among them."""
    rest = [choice for choice in field.domain if choice != field.value]
    chosen = [field.value, *rng.sample(rest, rng.randint(1, min(4, len(rest))))]
    if rng.random() < 0.3:
        chosen = list(field.domain)
    return rng.sample(chosen, len(chosen))


def _schema(rng: Random, data: Any, inner: list[Field], head: list[Field]) -> str:
    """Return a request with a JSON schema, as pydantic or a person writes it."""
    titled, listing = rng.random() < 0.4, rng.random() < 0.5
    closed, linked = rng.random() < 0.3, rng.random() < 0.5

    def kind(field: Field) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if field.optional:
            made = {"anyOf": [{"type": "string"}, {"type": "null"}]}
        elif isinstance(field.value, list):
            whole = bool(field.value) and isinstance(field.value[0], int)
            made = {"type": "array", "items": {"type": "integer" if whole else "string"}}
        elif isinstance(field.value, int):
            made = {"type": "integer"}
        else:
            made = {"type": "string"}
            if field.domain and listing:
                made["enum"] = _some(rng, field)
        return {**made, "title": field.name.capitalize()} if titled else made

    def whole(fields: dict[str, Any], title: str) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "object", "properties": fields, "required": list(fields)}
        if titled:
            made["title"] = title
        if closed:
            made["additionalProperties"] = False
        return dict(sorted(made.items())) if titled else made

    made: dict[str, Any] = whole({f.name: kind(f) for f in inner or head}, "Picture")
    if inner:
        row = whole({f.name: kind(f) for f in inner}, "Shape")
        name = "Bar" if "bar" in row["properties"] else "Shape"
        made = {"type": "array", "items": {"$ref": f"#/$defs/{name}"} if linked else row}
        if isinstance(data, dict):
            made = whole({**{f.name: kind(f) for f in head}, list(data)[-1]: made}, "Picture")
        made = {"$defs": {name: row}, **made} if linked else made
    text = json.dumps(made, separators=(",", ":")) if rng.random() < 0.5 else json.dumps(made)
    start = rng.choice(("Answer", "Answer", "Respond", "Reply"))
    lead = pick(
        rng,
        f"{start} with JSON that matches this schema:",
        f"{start} with JSON matching this JSON schema:",
        f"{start} with JSON that follows this JSON schema:",
        f"{start} in JSON with this schema:",
        f"{start} only with JSON that matches this schema:",
        f"{start} with a JSON value that matches this JSON schema:",
        "Return only JSON that follows this schema:",
        "Return JSON that fits this JSON schema:",
        "JSON schema:",
        "Schema:",
    )
    return lead + rng.choice((" ", " ", "\n")) + text


def choice(rng: Random, scene: Scene) -> Turn | None:
    """Ask a question whose possible answers are listed."""
    shapes = scene.shapes
    asks: list[tuple[str, str, tuple[str, ...]]] = []
    for shape in shapes:
        if sum(other.kind == shape.kind for other in shapes) == 1:
            asks.append((f"What colour is the {shape.kind}?", shape.colour, COLOURS))
        if sum(other.colour == shape.colour for other in shapes) == 1:
            asks.append((f"What shape is {shape.colour}?", shape.kind, SHAPES))
    if len(shapes) == 1:
        asks += [("What shape is this?", shapes[0].kind, SHAPES),
                 ("What colour is it?", shapes[0].colour, COLOURS)]  # fmt: skip
    if len(scene.digits) == 1:
        digits = tuple(str(i) for i in range(10))
        asks += [("What digit is this?", str(scene.digits[0].value), digits)] * 3
    if scene.chart:
        names = tuple(bar.name for bar in scene.chart.bars)
        high = max(scene.chart.bars, key=lambda bar: bar.value).name
        asks += [("Which bar is the highest?", high, names)] * 3
    if shapes:
        counts = tuple(str(i) for i in range(1, 7))
        asks.append(("How many shapes are there?", str(len(shapes)), counts))
        kind = rng.choice(shapes).kind if rng.random() < 0.5 else rng.choice(SHAPES)
        there = "yes" if any(shape.kind == kind for shape in shapes) else "no"
        asks.append((f"Is there a {kind}?", there, ("yes", "no")))
    asks.append(("What colour is the background?", scene.background, BACKGROUNDS))
    question, answer, domain = rng.choice(asks)
    options = _some(rng, Field("", answer, domain))
    if rng.random() < 0.2 and len(answer) > 1:
        options, answer = [o.capitalize() for o in options], answer.capitalize()
    if rng.random() < 0.5:
        question = question.replace("colour", "color")
    listed, lines = ", ".join(options), "\n".join(f"- {option}" for option in options)
    quoted = ", ".join(f'"{option}"' for option in options)
    lead = pick(rng, "Answer with one of", "Answer with one of these", "Choose one",
                "Choose one of", "Options", "Answer with exactly one of")  # fmt: skip
    tail = pick(rng, f"{lead}: {listed}.", f"{lead}: {listed}", f"{lead}: {quoted}.",
                f"{lead}:\n{lines}", f"{lead}: {' or '.join(options)}.")  # fmt: skip
    return Turn(question + rng.choice(("\n", "\n\n", " ")) + tail, answer, "choice", fixed=True)
