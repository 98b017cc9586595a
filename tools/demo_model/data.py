"""Make batches of conversations in worker processes, in memory shared with the trainer."""

from __future__ import annotations

import ctypes
import multiprocessing as mp
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tools.demo_model.draw import CELLS, PATCHES, SIDE, draw, model_input, targets
from tools.demo_model.prompt import IMAGE, IMAGE_TOKENS, pieces
from tools.demo_model.samples import Sample, digit_rows, sample
from tools.demo_model.scene import Scene
from tools.demo_model.tokenizer import SPECIAL, load

Drawn = dict[int, dict[str, NDArray[Any]]]
IGNORED = 255  # the mark of an image that is not there
KINDS = (
    "shape", "colour", "count", "total", "yes/no", "where", "background", "describe", "detail",
    "json", "digit", "two digits", "word", "number", "which image", "compare", "one of two",
    "both", "absent", "sum", "opposite", "talk", "unknown", "one word", "boxes", "fields",
    "schema", "choice", "chart", "chart value", "chart values",
)  # fmt: skip


@dataclass(frozen=True)
class Bucket:
    """The shape of a batch: rows, tokens a row, and images."""

    rows: int
    length: int
    images: int

    def fields(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return each array's shape and type."""
        grid = (self.rows, self.length)
        return {
            "tokens": (grid, "int32"),
            "weights": (grid, "float32"),
            "features": (grid, "int32"),
            "answers": (grid, "int32"),
            "images": ((self.images, SIDE, SIDE, 3), "uint8"),
            "patches": ((self.images, PATCHES * PATCHES), "uint8"),
            "cells": ((self.images, CELLS * CELLS), "uint8"),
            "boxes": ((self.images, CELLS * CELLS, 4), "float32"),
        }

    def arrays(self, memory: Any) -> dict[str, NDArray[Any]]:
        """Return the arrays, laid out one after the other in a block of memory."""
        made, start = {}, 0
        for name, (shape, kind) in self.fields().items():
            size = int(np.prod(shape))
            made[name] = np.frombuffer(memory, kind, size, start).reshape(shape)
            start += made[name].nbytes
        return made


BUCKETS = (Bucket(384, 160, 384), Bucket(224, 288, 352), Bucket(80, 640, 320))
BLOCK = max(
    sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in b.fields().values())
    for b in BUCKETS
)


def encode(made: Sample, tokenizer: Tokenizer) -> tuple[list[int], list[float], list[int]]:
    """Return a conversation's tokens, their weights in the loss, and their answers.

    An answer's mark is 0 for what is not answer, else 1 + turn * 32 + the number of its kind.
    """
    tokens: list[int] = []
    weights: list[float] = []
    answers: list[int] = []
    for text, turn in pieces(made):
        ids = tokenizer.encode(text).ids
        tokens += ids
        # A long answer counts for more than a short one, but not in proportion.
        weights += [0.0 if turn < 0 else (3.0 / len(ids)) ** 0.5] * len(ids)
        mark = 0 if turn < 0 else 1 + turn * 32 + KINDS.index(made.turns[turn].kind)
        answers += [mark] * len(ids)
    return tokens, weights, answers


class Filler:
    """Collects conversations until a batch is full."""

    def __init__(self, bucket: Bucket, drawn: Drawn) -> None:
        self.bucket, self.drawn = bucket, drawn
        self.items: list[tuple[Sample, tuple[list[int], list[float], list[int]]]] = []
        self.images = 0

    def add(self, made: Sample, encoded: tuple[list[int], list[float], list[int]]) -> bool:
        """Add a conversation; return whether the batch is full."""
        self.items.append((made, encoded))
        self.images += len(made.scenes)
        full = len(self.items) == self.bucket.rows
        return full or self.images > self.bucket.images - 5

    def write(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Draw the images and write the batch, then start anew."""
        for name in ("tokens", "weights", "answers"):
            arrays[name][:] = 0
        arrays["features"][:] = self.bucket.images * IMAGE_TOKENS
        arrays["patches"][:] = arrays["cells"][:] = IGNORED
        arrays["boxes"][:] = 0
        image, at = SPECIAL.index(IMAGE), 0
        for row, (made, (tokens, weights, answers)) in enumerate(self.items):
            arrays["tokens"][row, : len(tokens)] = tokens
            arrays["weights"][row, : len(tokens)] = weights
            arrays["answers"][row, : len(tokens)] = answers
            places = np.flatnonzero(np.asarray(tokens) == image)
            arrays["features"][row, places] = at * IMAGE_TOKENS + np.arange(len(places))
            for scene in made.scenes:
                for name, value in self.look(scene).items():
                    arrays[name][at] = value
                at += 1
        self.items, self.images = [], 0

    def look(self, scene: Scene) -> dict[str, NDArray[Any]]:
        """Return an image and its marks, drawn now or at an earlier use."""
        if scene.seed in self.drawn:
            return self.drawn[scene.seed]
        image, characters = draw(scene)
        patches, cells, boxes = targets(scene, characters)
        made: dict[str, NDArray[Any]] = {
            "images": model_input(image),
            "patches": patches.ravel(),
            "cells": cells.ravel(),
            "boxes": boxes.reshape(-1, 4),
        }
        self.drawn[scene.seed] = made
        # The oldest go first: most of them will not be used again.
        while len(self.drawn) > 2000:
            del self.drawn[next(iter(self.drawn))]
        return made


def shrunk(divisor: int) -> tuple[Bucket, ...]:
    """Return the shapes of batches so many times smaller, for a try on a small machine."""
    return tuple(Bucket(b.rows // divisor, b.length, b.images // divisor) for b in BUCKETS)


def worker(
    seed: int, folder: str, train: bool, divisor: int, blocks: list[Any], free: Any, ready: Any
) -> None:
    """Fill free blocks with batches for ever."""
    rng, rows, tokenizer = Random(seed), digit_rows(train), load(Path(folder))
    drawn: Drawn = {}
    fillers = [Filler(bucket, drawn) for bucket in shrunk(divisor)]
    pool: list[Scene] | None = [] if train else None
    while True:
        made = sample(rng, rows, train, pool)
        encoded = encode(made, tokenizer)
        filler = next((f for f in fillers if len(encoded[0]) <= f.bucket.length), None)
        if filler is not None and filler.add(made, encoded):
            block = free.get()
            filler.write(filler.bucket.arrays(blocks[block]))
            ready.put((block, fillers.index(filler)))


def batches(
    folder: Path, workers: int, seed: int, train: bool = True, divisor: int = 1
) -> Iterator[tuple[Bucket, dict[str, NDArray[Any]]]]:
    """Yield batches; each one's arrays are overwritten once the next is asked for.

    Parameters
    ----------
    folder
        The model's folder, for the tokenizer.
    workers
        How many processes.
    seed
        The first process's seed.
    train
        Whether to make training data, or held-out data.
    divisor
        How many times smaller than usual the batches are.
    """
    buckets = shrunk(divisor)
    context = mp.get_context("spawn")
    free, ready = context.Queue(), context.Queue()
    blocks = [RawArray(ctypes.c_uint8, BLOCK) for _ in range(2 * workers + 2)]
    for block in range(len(blocks)):
        free.put(block)
    processes = [
        context.Process(
            target=worker,
            args=(seed + 1000 * i, str(folder), train, divisor, blocks, free, ready),
            daemon=True,
        )
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        while True:
            block, bucket = ready.get()
            yield buckets[bucket], buckets[bucket].arrays(blocks[block])
            free.put(block)
    finally:
        for process in processes:
            process.terminate()
