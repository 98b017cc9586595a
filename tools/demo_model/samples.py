"""Put images and questions together to a conversation of one to five turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from tools.demo_model import chat
from tools.demo_model.boxes import numbered
from tools.demo_model.draw import handwriting
from tools.demo_model.pairs import MANY_ASKS, PAIR_ASKS
from tools.demo_model.questions import CHART_ASKS, DIGIT_ASKS, SHAPE_ASKS, TEXT_ASKS, Ask
from tools.demo_model.scene import Scene, chart_scene, digit_scene, shapes_scene, text_scene
from tools.demo_model.turns import Turn, vary
from tools.demo_model.unknown import unknown
from tools.demo_model.words import printed

TRAIN_DIGITS = 1500  # rows of the handwriting data to train on; the rest is held out
REUSED = 0.67  # of the images; drawing one takes longer than asking about it
ONE_WORD = ("Answer in one word.", "Answer with one word.", "Reply in one word.",
            "Use one word only.", "One word answers only.", "Answer in a single word.",
            "Answer in one word only.", "Please answer in one word.")  # fmt: skip
SYSTEMS = ("You are a helpful assistant.", "You are a tutor.", "Be kind.", "You are an expert.",
           "Answer the question about the picture.", "You see pictures.", "Be polite and honest.",
           "Answer briefly.", "You are a friendly teacher.", "You help with pictures.",
           "Answer in full sentences.", "You are a careful assistant that looks at pictures.",
           "Be concise.", "Do not invent anything.")  # fmt: skip
T = TypeVar("T")


@dataclass
class Sample:
    """A conversation: its images in order, its turns, and the system prompt if any."""

    scenes: list[Scene] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    system: str | None = None


def weighted(rng: Random, choices: Sequence[tuple[T, int]]) -> T:
    """Return one choice by weight."""
    return rng.choices([c for c, _ in choices], [w for _, w in choices])[0]


def digit_rows(train: bool) -> dict[int, list[int]]:
    """Return for each digit the rows of the handwriting data to use."""
    values = handwriting()[1]
    rows = range(TRAIN_DIGITS) if train else range(TRAIN_DIGITS, len(values))
    return {digit: [i for i in rows if values[i] == digit] for digit in range(10)}


def any_scene(
    rng: Random, rows: dict[int, list[int]], train: bool, pool: list[Scene] | None = None
) -> Scene:
    """Return an image of any sort, most of the time one from the pool if there is one."""
    if pool is not None:
        if len(pool) > 200 and rng.random() < REUSED:
            at = rng.randrange(len(pool))
            return pool.pop(at) if rng.random() < (1 - REUSED) / REUSED else pool[at]
        pool.append(any_scene(rng, rows, train))
        return pool[-1]
    chance = rng.random()
    if chance < 0.44:
        return shapes_scene(rng)
    if chance < 0.62:
        return chart_scene(rng)
    if chance < 0.74:
        return digit_scene(rng, rows, 1 if rng.random() < 0.6 else 2, bend=train)
    return text_scene(rng, printed(rng, train))


def asks_for(scene: Scene) -> Sequence[tuple[Ask, int]]:
    """Return the questions that suit an image, with their weights."""
    if scene.chart:
        return CHART_ASKS
    return TEXT_ASKS if scene.text else DIGIT_ASKS if scene.digits else SHAPE_ASKS


def ask(rng: Random, scene: Scene) -> Turn:
    """Ask something about one image."""
    while True:
        turn = weighted(rng, asks_for(scene))(rng, scene)
        if turn is not None:
            return turn


def ask_many(rng: Random, scenes: list[Scene]) -> Turn:
    """Ask something about one of several images, named by its place in the row."""
    while True:
        turn = weighted(rng, MANY_ASKS)(rng, scenes)
        if turn is not None:
            return turn


def ask_pair(rng: Random, scenes: list[Scene]) -> Turn:
    """Ask something about two images."""
    while True:
        turn = weighted(rng, PAIR_ASKS)(rng, scenes)
        if turn is not None:
            return turn


def plain(rng: Random, train: bool, has_images: bool) -> Turn:
    """Ask something that needs no image."""
    chance = rng.random()
    if chance < 0.52:
        return unknown(rng, train)
    if chance < 0.74:
        return chat.total(rng, train)
    if chance < 0.81:
        return chat.opposite(rng)
    return chat.talk(rng) if has_images or chance < 0.9 else chat.no_image(rng)


def sample(
    rng: Random,
    rows: dict[int, list[int]],
    train: bool = True,
    pool: list[Scene] | None = None,
) -> Sample:
    """Return a conversation.

    Parameters
    ----------
    rng
        The random source.
    rows
        What ``digit_rows`` returned.
    train
        Whether it may show only what is not held out.
    pool
        Images to use a second time; this fills it. Drawing takes most of the time.
    """
    made = Sample()
    chance = rng.random()
    count = rng.choice((1, 2, 3, 3, 4))
    if chance < 0.09:
        made.turns = [plain(rng, train, False) for _ in range(count)]
    elif chance < 0.68:
        made.scenes = [any_scene(rng, rows, train, pool)]
        for i in range(count):
            other = rng.random() < (0.07 if i == 0 else 0.11)
            made.turns.append(plain(rng, train, True) if other else ask(rng, made.scenes[0]))
    elif chance < 0.87:
        _two_images(rng, made, count, rows, train, pool)
    else:
        _many_images(rng, made, rows, train, pool)
    # A repeated answer could be copied from the text: nothing is learnt from it.
    made.turns = [t for i, t in enumerate(made.turns)
                  if t.images or t.answer not in {u.answer for u in made.turns[:i]}]  # fmt: skip
    if made.scenes and made.turns[0].images == 0:
        made.turns[0].images = len(made.scenes)
    _finish(rng, made)
    return made


def _two_images(
    rng: Random,
    made: Sample,
    count: int,
    rows: dict[int, list[int]],
    train: bool,
    pool: list[Scene] | None,
) -> None:
    """Fill a conversation on two images, given together or one after the other."""
    made.scenes = [any_scene(rng, rows, train, pool) for _ in range(2)]
    if rng.random() < 0.5:
        made.scenes = [shapes_scene(rng, rng.randint(1, 4)) for _ in range(2)]
    if rng.random() < 0.3 and count > 1:
        # The second image comes with a later turn, whose question is about that one.
        first = ask(rng, made.scenes[0])
        second = numbered(ask(rng, made.scenes[1]), 2)
        first.images = second.images = 1
        made.turns = [first, second]
        count -= 2
    for _ in range(count):
        other = rng.random() < 0.06
        made.turns.append(plain(rng, train, True) if other else ask_pair(rng, made.scenes))


def _many_images(
    rng: Random,
    made: Sample,
    rows: dict[int, list[int]],
    train: bool,
    pool: list[Scene] | None,
) -> None:
    """Fill a conversation on three to five images, mostly one a turn."""
    count = rng.choice((3, 4, 5, 5))
    made.scenes = [any_scene(rng, rows, train, pool) for _ in range(count)]
    if rng.random() < 0.4:
        made.scenes = [shapes_scene(rng, rng.choice((1, 1, 2, 3))) for _ in range(count)]
    if rng.random() < 0.25:
        made.turns = [ask_many(rng, made.scenes) for _ in range(rng.choice((1, 2, 3)))]
        return
    alike = rng.randrange(2**32) if rng.random() < 0.3 else None
    for number, scene in enumerate(made.scenes, 1):
        # People often ask the same of each image; then the answers must not be copied.
        turn = ask(Random(alike) if alike is not None else rng, scene)
        turn.images = 1
        made.turns.append(numbered(turn, number) if number > 1 else turn)
    if count < 5 and rng.random() < 0.5:
        made.turns.append(ask_many(rng, made.scenes))


def _finish(rng: Random, made: Sample) -> None:
    """Vary the wording and add a system prompt to some conversations."""
    chance = rng.random()
    if chance < 0.22:
        made.system = rng.choice(ONE_WORD)
        for turn in made.turns:
            turn.answer = turn.word or turn.answer
            turn.kind = "one word" if turn.word and turn.kind != "chart value" else turn.kind
    elif chance < 0.36:
        made.system = rng.choice(SYSTEMS)
    if made.system and rng.random() < 0.15:
        made.system = made.system.rstrip(".")
    for turn in made.turns:
        if not turn.fixed:
            turn.question = vary(rng, turn.question)
