"""Requests of many kinds, some of them cancelled, reproducible by their seed."""

from __future__ import annotations

import io
import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from mlx_magic.engine.request import Sampling

Event = Literal[
    "asked", "prepared", "loading", "vision", "prefill", "chunk", "decode", "token", "neighbor"
]

CANCELLED = 0.5
"""Share of the requests that somebody wants to cancel: some of them end too soon for that."""

TIMED = 0.06
BROKEN = 0.03
LONGEST = 24
CHATS = 12
TIMES = (0.001, 0.02, 0.05, 0.2)
COLOURS = ("red", "green", "blue", "orange", "purple", "black")
QUESTIONS = (
    "What colour is the shape?",
    "Which shape is it?",
    "Describe this picture in every detail.",
    "Is there anything round in it? Say why you think so.",
    "What is in the middle?",
    "What is 12 plus 30?",
    "Name three colours.",
    "Why?",
)
STOPS = (("the",), (".",), ("shape", " is"), ("e", "\n"))
BAD_IMAGE = b"this is no image"


@dataclass(frozen=True, slots=True)
class Cut:
    """When a request is cancelled.

    Attributes
    ----------
    event : Event
        Right after the request, when its images are open, when it enters a phase, after a
        chunk of its prefill, at its `token`-th token, or when another request ends.
    token : int
    """

    event: Event
    token: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A request, and when it is cancelled.

    Attributes
    ----------
    prompt : str
    images : tuple of bytes
    sampling : Sampling
    timeout : float or None
        Seconds.
    chat : int or None
        Number of the chat that it continues.
    cut : Cut or None
    broken : bool
        Whether it has an invalid image, or a prompt that the processor refuses.
    """

    prompt: str
    images: tuple[bytes, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    timeout: float | None = None
    chat: int | None = None
    cut: Cut | None = None
    broken: bool = False


def drawn_images() -> list[bytes]:
    """Draw a few small images, as PNG."""
    from PIL import Image, ImageDraw

    drawn = []
    for at, colour in enumerate(COLOURS):
        image = Image.new("RGB", (200, 150), "white")
        draw: Any = ImageDraw.Draw(image)
        (draw.ellipse if at % 2 else draw.rectangle)((60, 30, 140, 110), fill=colour)
        held = io.BytesIO()
        image.save(held, "PNG")
        drawn.append(held.getvalue())
    return drawn


def plans(count: int, seed: int, drawn: list[bytes]) -> list[Plan]:
    """Make random requests.

    Parameters
    ----------
    count, seed : int
    drawn : list of bytes
        Images.
    """
    rng = random.Random(seed)
    cancelled = set(rng.sample(range(count), round(CANCELLED * count)))
    # Each event equally often, and tokens again, as decode takes most of an answer's time.
    events = itertools.cycle((*get_args(Event), "token"))
    return [
        _plan(rng, number, drawn, next(events) if number in cancelled else None)
        for number in range(count)
    ]


def controls(drawn: list[bytes]) -> list[Plan]:
    """Make the twenty questions that must have the same answer before and after."""
    found = []
    for number in range(20):
        sampling = Sampling(max_tokens=16, temperature=0)
        if number % 4 == 3:
            sampling = Sampling(max_tokens=16, temperature=1.0, top_p=0.9, seed=number)
        shown = tuple(drawn[(number + at) % len(drawn)] for at in range(number % 3))
        found.append(Plan(QUESTIONS[number % len(QUESTIONS)], shown, sampling))
    return found


def _plan(rng: random.Random, number: int, drawn: list[bytes], event: Event | None) -> Plan:
    least = 1 if event == "vision" else 0
    shown = tuple(rng.choice(drawn) for _ in range(max(rng.choice((0, 1, 1, 1, 2)), least)))
    prompt = rng.choice(QUESTIONS)
    if rng.random() < 0.05:
        # Several prefill chunks, and in no cache.
        prompt = f"Number {number}. " + f"{prompt} " * rng.randint(60, 120)
    plan = Plan(
        prompt,
        shown,
        _sampling(rng),
        chat=rng.randrange(CHATS) if rng.random() < 0.4 else None,
        cut=None if event is None else Cut(event, rng.randint(1, 8)),
    )
    chance = rng.random()
    if plan.cut is None and chance < TIMED / (1 - CANCELLED):
        return replace(plan, timeout=rng.choice(TIMES))
    if plan.cut is None and chance > 1 - BROKEN:
        broken = replace(plan, broken=True, chat=None)
        return replace(broken, images=(*shown, BAD_IMAGE))
    return plan


def _sampling(rng: random.Random) -> Sampling:
    way = rng.randrange(4)
    sampling = Sampling(max_tokens=rng.randint(1, LONGEST), temperature=0.0)
    if way >= 2:
        sampling = replace(
            sampling,
            temperature=rng.choice((0.7, 1.0, 1.5)),
            seed=rng.randrange(1000),
            top_p=rng.choice((None, 0.9)),
            top_k=rng.choice((None, 20)),
            min_p=rng.choice((None, 0.05)),
        )
    if way % 2:
        sampling = replace(
            sampling,
            stop=rng.choice(((), *STOPS)),
            repetition_penalty=rng.choice((None, 1.3)),
        )
    return sampling
