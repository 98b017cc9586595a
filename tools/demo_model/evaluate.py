"""Measure the model on held-out data, as a user would run it: exact sentences, greedy.

``python -m tools.demo_model.evaluate --number 100 --json results.json``
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
from PIL import Image

from mlx_magic.demo import folder
from tools.demo_model.chat import held_out_totals
from tools.demo_model.data import KINDS
from tools.demo_model.draw import draw
from tools.demo_model.samples import Sample, digit_rows, sample

READING = ("word", "number")


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
            max_tokens=240, temperature=0.0, verbose=False,
        )  # fmt: skip
        answer = str(result.text).strip()
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return answer


def held_out_samples(number: int, seed: int) -> list[Sample]:
    """Return conversations of at most three turns, until each kind was asked often enough."""
    rng, rows = Random(seed), digit_rows(train=False)
    counts: Counter[str] = Counter()
    chosen: list[Sample] = []
    while any(counts[kind] < number for kind in KINDS):
        made = sample(rng, rows, train=False)
        made.turns = made.turns[:3]
        made.scenes = made.scenes[: sum(turn.images for turn in made.turns)]
        # Only conversations that ask something still wanted, so that no kind is asked too often.
        if any(counts[turn.kind] < number for turn in made.turns):
            counts.update(turn.kind for turn in made.turns)
            chosen.append(made)
    return chosen


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
    wrong: list[dict[str, str]] = []
    for made in samples:
        images = [draw(scene)[0] for scene in made.scenes]
        chat = Chat(model, processor)
        if made.system:
            chat.messages.append({"role": "system", "content": made.system})
        for number, turn in enumerate(made.turns, 1):
            shown = len(chat.images)
            answer = chat.ask(turn.question, images[shown : shown + turn.images])
            right = answer == turn.answer
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
    return {"scores": scores, "wrong": wrong}


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
    print(f"{time.time() - started:.0f} s")
    for line in result["wrong"][: args.show]:
        print(line)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
