"""Train the bundled model: ``python -m tools.demo_model train --out FOLDER --seconds 500``."""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map
from tokenizers import Tokenizer

from tools.demo_model.architecture import TEXT, VISION, build, save_weights, write_folder
from tools.demo_model.data import IGNORED, KINDS, batches
from tools.demo_model.draw import CHARACTERS, MARKS
from tools.demo_model.tokenizer import load, train_tokenizer

Batch = dict[str, mx.array]
BOXES = 10.0  # weight of the boxes' distance beside the other marks


class Trainee(nn.Module):  # type: ignore[misc]
    """The model, with three heads that say what is where; they are thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build()
        self.patch_head = nn.Linear(VISION["hidden_size"], 1 + len(CHARACTERS))
        self.cell_head = nn.Linear(TEXT["hidden_size"], MARKS)
        self.box_head = nn.Linear(TEXT["hidden_size"], 4)

    def __call__(self, batch: Batch) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Return the logits of the next tokens, of the patches and cells, and the cells' boxes."""
        model = self.model
        images = batch["images"].astype(self.cell_head.weight.dtype) / 127.5 - 1.0
        # Without a mask the patches are numbered in order, as they are for a full image.
        seen = model.vision_model(images, None)[0]
        features = model.connector(seen)
        flat = features.reshape(-1, features.shape[-1])
        flat = mx.concatenate([flat, mx.zeros((1, flat.shape[1]), flat.dtype)])
        index = batch["features"]
        words = model.language_model.embed_tokens(batch["tokens"])
        is_image = (index < flat.shape[0] - 1)[..., None]
        embedded = mx.where(is_image, flat[index], words)
        logits = model.language_model(batch["tokens"], inputs_embeds=embedded).logits
        return logits, self.patch_head(seen), self.cell_head(features), self.box_head(features)


def marked_loss(logits: mx.array, marks: mx.array) -> mx.array:
    """Return the loss on what lies where, with empty places counting little."""
    weights = mx.where(marks == IGNORED, 0.0, mx.where(marks == 0, 0.05, 1.0))
    wanted = mx.where(marks == IGNORED, 0, marks).astype(mx.int32)
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), wanted)
    total: mx.array = (losses * weights).sum() / mx.maximum(weights.sum(), 1.0)
    return total


def box_loss(boxes: mx.array, wanted: mx.array) -> mx.array:
    """Return the mean distance of edges in the cells that hold a box, as a fraction."""
    held = (wanted.sum(-1, keepdims=True) > 0).astype(mx.float32)
    distance = mx.abs(boxes.astype(mx.float32) - wanted) * held
    total: mx.array = distance.sum() / mx.maximum(4 * held.sum(), 1.0)
    return total


def loss(trainee: Trainee, batch: Batch, share: mx.array, dtype: Any) -> tuple[mx.array, mx.array]:
    """Return the whole loss, and the loss on the answers alone."""
    whole = trainee.trainable_parameters()
    trainee.update(tree_map(lambda value: value.astype(dtype), whole))
    logits, patches, cells, boxes = trainee(batch)
    trainee.update(whole)
    weights = batch["weights"][:, 1:]
    losses = nn.losses.cross_entropy(logits[:, :-1].astype(mx.float32), batch["tokens"][:, 1:])
    answers = (losses * weights).sum() / weights.sum()
    marks = marked_loss(patches, batch["patches"]) + marked_loss(cells, batch["cells"])
    marks = marks + BOXES * box_loss(boxes, batch["boxes"])
    return answers + share * marks, answers


def evaluate(
    trainee: Trainee, folder: Path, workers: int, count: int, divisor: int
) -> dict[str, float]:
    """Return the share of right answers by kind, each answer given the right ones before it."""
    right: dict[str, list[bool]] = defaultdict(list)
    for number, (_, arrays) in enumerate(batches(folder, workers, 900_001, False, divisor)):
        if number == count:
            break
        logits, _, _, _ = trainee({name: mx.array(value) for name, value in arrays.items()})
        hits = np.asarray(mx.argmax(logits[:, :-1], -1)) == arrays["tokens"][:, 1:]
        marks = arrays["answers"][:, 1:]
        for row in range(len(marks)):
            for mark in np.unique(marks[row][marks[row] > 0]):
                kind = KINDS[(int(mark) - 1) % 32]
                right[kind].append(bool(hits[row][marks[row] == mark].all()))
    for kind in KINDS:
        if kind in right:
            print(f"{kind:14} {np.mean(right[kind]):.4f} of {len(right[kind])}")
    every = [hit for kind in right.values() for hit in kind]
    print(f"{'all':14} {np.mean(every):.4f} of {len(every)}", flush=True)
    return {kind: float(np.mean(hits)) for kind, hits in right.items()}


def begin_with(model: Any, folder: Path, tokenizer: Tokenizer) -> None:
    """Take over the weights of an earlier model of the same shape, whatever its tokenizer.

    A token that the earlier tokenizer did not have begins as the mean of what it was spelled as.

    Parameters
    ----------
    model
        The model to fill.
    folder
        The earlier model's folder.
    tokenizer
        The new model's tokenizer.
    """
    held = mx.load(str(folder / "model.safetensors"))
    assert isinstance(held, dict)
    weights = dict(held)
    earlier = load(folder)
    spelled = [
        earlier.encode(tokenizer.decode([number], skip_special_tokens=False)).ids or [0]
        for number in range(tokenizer.get_vocab_size())
    ]
    for name, value in weights.items():
        value = value.astype(mx.float32)
        if "embed_tokens" in name or "lm_head" in name:
            rows = np.asarray(value)
            exact = [
                earlier.token_to_id(str(tokenizer.id_to_token(i))) for i in range(len(spelled))
            ]
            value = mx.array(np.stack([
                rows[number] if number is not None else rows[pieces].mean(0)
                for number, pieces in zip(exact, spelled, strict=True)
            ]))  # fmt: skip
        weights[name] = value
    model.load_weights(list(weights.items()))


def optimizer() -> Any:
    """Return AdamW, without weight decay on embeddings, norms and biases."""

    def decays(name: str, value: mx.array) -> bool:
        return value.ndim > 1 and "embed" not in name

    rest = {"betas": [0.9, 0.98], "eps": 1e-8}
    return optim.MultiOptimizer(
        [optim.AdamW(2e-3, weight_decay=0.05, **rest), optim.AdamW(2e-3, weight_decay=0.0, **rest)],
        [decays],
    )


def save(trainee: Trainee, folder: Path) -> None:
    """Write the model's weights, and what training can go on from."""
    save_weights(trainee.model, folder / "model.safetensors")
    trainee.save_weights(str(folder / "trainee.npz"))


def train(args: argparse.Namespace) -> None:
    """Train for a given time, then measure and save."""
    named = args.resume or args.tokenizer
    tokenizer = load(named) if named else train_tokenizer(args.tokenizer_samples)
    write_folder(args.out, tokenizer)
    mx.random.seed(args.seed)
    trainee = Trainee()
    if args.resume:
        trainee.load_weights(str(args.resume / "trainee.npz"))
    elif args.start:
        begin_with(trainee.model, args.start, tokenizer)
    mx.eval(trainee.parameters())
    adam = optimizer()
    adam.init(trainee.trainable_parameters())
    dtype = {"bfloat16": mx.bfloat16, "float32": mx.float32}[args.dtype]
    graded = nn.value_and_grad(trainee, partial(loss, dtype=dtype))
    state = [trainee.state, adam.state]

    def step(batch: Batch, rate: mx.array, share: mx.array) -> tuple[mx.array, mx.array]:
        (_, answers), gradients = graded(trainee, batch, share)
        gradients, norm = optim.clip_grad_norm(gradients, 1.0)
        for one in adam.optimizers:
            one.learning_rate = rate
        adam.update(trainee, gradients)
        return answers, norm

    run = mx.compile(step, inputs=state, outputs=state) if args.compile else step
    started, steps, rows, last = 0.0, 0, 0, []
    shown = saved = time.time()
    for bucket, arrays in batches(args.out, args.workers, args.seed * 7919 + 1, True, args.divisor):
        # The clock starts with the first batch: starting the workers is no training time.
        started = started or time.time()
        done = (time.time() - started) / args.seconds
        if done >= 1 or steps == args.steps:
            break
        warm = min(1.0, (steps + 1) / args.warmup)
        rate = args.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        share = args.marks * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
        batch = {name: mx.array(value) for name, value in arrays.items()}
        values = run(batch, mx.array(rate), mx.array(share))
        mx.async_eval(values, state)  # type: ignore[no-untyped-call]
        # One step runs ahead: the next batch is copied while the device works.
        last.append(values)
        if len(last) > 2:
            mx.eval(last.pop(0))
        steps, rows = steps + 1, rows + bucket.rows
        if time.time() - shown > args.show:
            shown = time.time()
            pace, seen = rows / (shown - started), last[0][0].item()
            print(f"{done:.3f} step {steps} rows/s {pace:.0f} loss {seen:.4f}", flush=True)
        if time.time() - saved > args.save:
            saved = time.time()
            save(trainee, args.out)
    mx.eval(state)
    print(f"{steps} steps, {rows} conversations, {time.time() - started:.0f} s", flush=True)
    save(trainee, args.out)
    evaluate(trainee, args.out, args.workers, args.measure, args.divisor)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--resume", type=Path, help="folder of an earlier run to go on from")
    parser.add_argument("--start", type=Path, help="folder of a model to take the weights of")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer to use as it is")
    parser.add_argument("--save", type=float, default=60, help="seconds between checkpoints")
    parser.add_argument("--seconds", type=float, default=500, help="time to train")
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many steps")
    parser.add_argument("--workers", type=int, default=14, help="processes that make data")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=150, help="steps to reach it")
    parser.add_argument("--marks", type=float, default=0.5, help="weight of what lies where")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--measure", type=int, default=60, help="held-out batches at the end")
    parser.add_argument("--divisor", type=int, default=1, help="make batches so many times smaller")
    parser.add_argument("--tokenizer-samples", type=int, default=30000)
    parser.add_argument("--show", type=float, default=10, help="seconds between lines")
    parser.add_argument("--seed", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
