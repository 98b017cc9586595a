"""Measure the model on held-out data, as a user would run it: exact sentences, greedy.

The images are drawn by ``fresh.py``, which training never uses. Boxes and values of charts are
numbers that are read off an image, so they need not be exact: see ``is_right``.

``python -m tools.demo_model.evaluate --number 100 --json results.json``
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
from PIL import Image

from mlx_magic.demo import folder
from tools.demo_model.boxes import SCALE
from tools.demo_model.chat import held_out_totals
from tools.demo_model.data import KINDS
from tools.demo_model.fresh import Box, render
from tools.demo_model.samples import Sample, digit_rows, sample
from tools.demo_model.turns import Turn

READING = ("word", "number")
VALUES = ("chart value", "chart values")
OVERLAP = 0.5  # of a right box with the true one, as in PASCAL VOC and COCO's AP50
TOLERANCE = 0.1  # of a value read off a chart


@dataclass
class Chat:
    """A conversation with a loaded model, which keeps its images and messages."""

    model: Any
    processor: Any
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)

    def ask(self, question: str, images: list[Image.Image] | None = None) -> str:
        """Ask, with images or without, and return the model's answer."""
        from mlx_vlm import generate
        from mlx_vlm.prompt_utils import apply_chat_template

        images = images or []
        self.images += images
        content: list[dict[str, str]] = [{"type": "image"} for _ in images]
        content.append({"type": "text", "text": question})
        self.messages.append({"role": "user", "content": content})
        prompt = apply_chat_template(
            self.processor, self.model.config, self.messages, num_images=len(self.images)
        )
        result = generate(
            self.model, self.processor, prompt, self.images or None,
            max_tokens=400, temperature=0.0, verbose=False,
        )  # fmt: skip
        answer = str(result.text).strip()
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return answer


def held_out_samples(number: int, seed: int) -> list[Sample]:
    """Return conversations, until each kind was asked often enough."""
    rng, rows = Random(seed), digit_rows(train=False)
    counts: Counter[str] = Counter()
    chosen: list[Sample] = []
    while any(counts[kind] < number for kind in KINDS):
        made = sample(rng, rows, train=False)
        made.scenes = made.scenes[: sum(turn.images for turn in made.turns)]
        # Only conversations that ask something still wanted, so that no kind is asked too often.
        if any(counts[turn.kind] < number for turn in made.turns):
            counts.update(turn.kind for turn in made.turns)
            chosen.append(made)
    return chosen


def overlap(one: Box, other: Box) -> float:
    """Return the area that two boxes share, as a fraction of the area that they cover."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (sum(areas) - shared)


def overlaps(answer: str, turn: Turn, boxes: list[Box]) -> list[float]:
    """Return the overlap of each box that was asked for with the one that was answered.

    Parameters
    ----------
    answer
        What the model said.
    turn
        The question. Labels and number of boxes must be the right ones, else every overlap is 0.
    boxes
        The boxes of the image's shapes as they were drawn, as fractions of width and height. Of a
        point the overlap is 1 inside the shape's box and else 0.
    """
    try:
        said, right = json.loads(answer), json.loads(turn.answer)
        said, right = (v if isinstance(v, list) else [v] for v in (said, right))
        if [_rest(one) for one in said] != [_rest(one) for one in right]:
            return [0.0] * len(right)
        found = []
        for one, number in zip(said, turn.named, strict=True):
            if "point_2d" in one:
                x, y = (value / SCALE for value in one["point_2d"])
                left, upper, low_x, low_y = boxes[number]
                found.append(float(left <= x <= low_x and upper <= y <= low_y))
            else:
                left, upper, low_x, low_y = (value / SCALE for value in one["bbox_2d"])
                found.append(overlap((left, upper, low_x, low_y), boxes[number]))
        return found
    except (ValueError, TypeError, KeyError):
        return [0.0] * len(turn.named)


def _rest(one: dict[str, Any]) -> dict[str, Any]:
    """Return a box without its numbers: the label, and the image if it is named."""
    return {name: v for name, v in one.items() if name not in ("bbox_2d", "point_2d")} | {
        "keys": sorted(one)}  # fmt: skip


def is_right(answer: str, turn: Turn, boxes: list[Box]) -> bool:
    """Return whether an answer is right.

    Boxes must overlap the true ones by half, and a chart's values be within a tenth. Everything
    else must be the exact text. JSON is compared by its contents, not by its spaces.
    """
    if turn.kind == "boxes":
        return min(overlaps(answer, turn, boxes)) >= OVERLAP
    if turn.kind in VALUES or '"value"' in turn.answer:
        numbers = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")
        said, right = (numbers.findall(text) for text in (answer, turn.answer))
        text, true = ("".join(numbers.sub("#", t).split()) for t in (answer, turn.answer))
        near = all(abs(float(a) - float(b)) <= TOLERANCE * float(b)
                   for a, b in zip(said, right, strict=False))  # fmt: skip
        return text == true and near
    if turn.kind in ("fields", "schema", "json"):
        try:
            return bool(json.loads(answer) == json.loads(turn.answer))
        except ValueError:
            return False
    return answer == turn.answer


def measure(model: Any, processor: Any, samples: list[Sample]) -> dict[str, Any]:
    """Return the share of exact answers by kind, by number of images and by turn.

    Parameters
    ----------
    model, processor
        What ``mlx_vlm.load`` returned.
    samples
        The conversations; the model's own answers stay in the history.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    shares: list[float] = []
    wrong: list[dict[str, str]] = []
    for made in samples:
        drawn = [render(scene) for scene in made.scenes]
        images = [one.image for one in drawn]
        chat = Chat(model, processor)
        if made.system:
            chat.messages.append({"role": "system", "content": made.system})
        for number, turn in enumerate(made.turns, 1):
            shown = len(chat.images)
            answer = chat.ask(turn.question, images[shown : shown + turn.images])
            about = turn.image if turn.image >= 0 else len(chat.images) - 1
            boxes = drawn[about].boxes if drawn else []
            right = is_right(answer, turn, boxes)
            if turn.kind == "boxes" and "bbox_2d" in turn.answer:
                shares += overlaps(answer, turn, boxes)
                hits["one box" if len(turn.named) == 1 else "several boxes"].append(right)
            hits[turn.kind].append(right)
            hits[f"turn {number}"].append(right)
            hits[f"{len(chat.images)} image(s)"].append(right)
            hits["all"].append(right)
            if turn.kind in READING:
                hits["reading (word and number)"].append(right)
            if not right:
                size = " ".join(f"{scene.width}x{scene.height}" for scene in made.scenes)
                wrong.append({"kind": turn.kind, "size": size, "question": turn.question,
                              "right": turn.answer, "answer": answer})  # fmt: skip
    scores = {name: {"right": sum(v), "of": len(v)} for name, v in sorted(hits.items())}
    mean = sum(shares) / len(shares) if shares else None
    return {"scores": scores, "wrong": wrong, "mean_iou": mean, "boxes": len(shares)}


def main() -> None:
    """Load the model, measure it and print a table."""
    from mlx_vlm import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=folder(), help="the model's folder")
    parser.add_argument("--number", type=int, default=100, help="answers of each kind, at least")
    parser.add_argument("--seed", type=int, default=20_261_122)
    parser.add_argument("--dtype", choices=("stored", "float32"), default="float32")
    parser.add_argument("--json", type=Path, help="file for the scores and the wrong answers")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print")
    args = parser.parse_args()
    model, processor = load(str(args.model))
    if args.dtype == "float32":
        model.set_dtype(mx.float32)
    started = time.time()
    result = measure(model, processor, held_out_samples(args.number, args.seed))
    # Sums are few enough to ask them all: a draw asks some pairs more often than others.
    sums = [Sample(turns=[turn]) for turn in held_out_totals()]
    every = measure(model, processor, sums)
    result["scores"]["every held-out sum"] = every["scores"]["sum"]
    result["wrong"] += every["wrong"]
    for name, score in result["scores"].items():
        share = score["right"] / score["of"]
        print(f"{name:28} {100 * share:6.1f} % {score['right']:5} of {score['of']}")
    if result["mean_iou"] is not None:
        print(f"mean IoU {result['mean_iou']:.3f} of {result['boxes']} boxes")
    print(f"{time.time() - started:.0f} s")
    for line in result["wrong"][: args.show]:
        print(line)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
