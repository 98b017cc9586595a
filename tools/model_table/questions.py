"""What every checkpoint is asked, alone and together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_magic.engine.request import Exchange, GenerationRequest, Sampling
from mlx_magic.images.opening import open_images

LONG = " ".join(
    f"Line {n}: the {n}th box holds {n * 7 % 11} red and {n * 5 % 9} blue balls."
    for n in range(1, 16)
)
"""Over several chunks, and beyond the windows and original positions of the checkpoints."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question and its answer.

    Attributes
    ----------
    prompt, answer : str
    images : tuple of str
        Names from `draw`.
    """

    prompt: str
    answer: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a model.

    Attributes
    ----------
    name : str
    prompt : str
    images : tuple of str
        Names from `draw`.
    system : str or None
    history : tuple of Turn
    tokens : int
        Length of the answer at most.
    """

    name: str
    prompt: str
    images: tuple[str, ...] = ()
    system: str | None = None
    history: tuple[Turn, ...] = ()
    tokens: int = 12

    def request(self, files: Mapping[str, Path]) -> GenerationRequest:
        """Return it as mlx-magic takes it."""
        history = tuple(
            Exchange(turn.prompt, turn.answer, _opened(turn.images, files)) for turn in self.history
        )
        return GenerationRequest(
            self.prompt,
            images=_opened(self.images, files),
            model="tiny",
            system=self.system,
            sampling=Sampling(max_tokens=self.tokens, temperature=0.0),
            history=history,
        )

    def messages(self) -> list[dict[str, Any]]:
        """Return it as a chat, images as parts before the text of their turn."""
        chat: list[dict[str, Any]] = []
        if self.system:
            chat.append({"role": "system", "content": self.system})
        for turn in self.history:
            chat.append({"role": "user", "content": _content(turn.prompt, turn.images)})
            chat.append({"role": "assistant", "content": turn.answer})
        chat.append({"role": "user", "content": _content(self.prompt, self.images)})
        return chat

    @property
    def all_images(self) -> tuple[str, ...]:
        """All images of the conversation, in the order of its turns."""
        return (*(name for turn in self.history for name in turn.images), *self.images)


IMAGE = Question("image", "What is in this picture?", ("ring",))
TEXT = Question("text", "How many legs has a spider?")
SPACES = Question("outer spaces", "  \n Say it again, slowly: two three \n ")
TWO = Question("two images", "Compare them.", ("ring", "bars"))
SYSTEM = Question(
    "system prompt", "Which colors are there?", ("bars",), system="Answer in one word."
)
FOLLOW_UP = Question(
    "follow-up",
    "And what is left of it?",
    history=(Turn("What is in this picture?", "A ring.", ("ring",)),),
)
SECOND_IMAGE = Question(
    "image in a second turn",
    "And in this one?",
    ("bars",),
    history=(Turn("What is in this picture?", "A ring.", ("ring",)),),
)
DOT = Question("1 x 1 image", "What is this?", ("dot",))
STRIP = Question("2000 x 30 image", "What is this?", ("strip",))
LONG_TEXT = Question("long prompt", LONG + " How many balls are there?", tokens=40)
LONG_IMAGE = Question(
    "long prompt with image", LONG + " Where is the picture?", ("bars",), tokens=40
)

VISION = (
    IMAGE,
    TEXT,
    SPACES,
    TWO,
    SYSTEM,
    FOLLOW_UP,
    SECOND_IMAGE,
    DOT,
    STRIP,
    LONG_TEXT,
    LONG_IMAGE,
)
WORDS = (
    TEXT,
    SPACES,
    replace(SYSTEM, images=()),
    replace(FOLLOW_UP, history=(Turn("What is a ring?", "A circle with a hole."),)),
    Question("short", "No?"),
    LONG_TEXT,
    replace(LONG_TEXT, name="longer prompt", prompt=LONG + LONG + " Say which.", tokens=24),
)


def draw(folder: Path) -> dict[str, Path]:
    """Write the images as PNG; return their files by name."""
    from PIL import Image, ImageDraw

    ring = Image.new("RGB", (120, 96), (240, 240, 220))
    pen = ImageDraw.Draw(ring)
    pen.ellipse((20, 10, 90, 80), outline=(200, 30, 30), width=12)
    pen.rectangle((95, 70, 115, 90), fill=(30, 60, 200))
    bars = Image.new("RGB", (90, 150), (10, 60, 40))
    pen = ImageDraw.Draw(bars)
    for at in range(5):
        pen.rectangle((8 + 16 * at, 140 - 25 * at, 18 + 16 * at, 145), fill=(250, 40 * at, 90))
    dot = Image.new("RGB", (1, 1), (250, 120, 0))
    strip = Image.linear_gradient("L").resize((2000, 30)).convert("RGB")
    files = {}
    for name, image in (("ring", ring), ("bars", bars), ("dot", dot), ("strip", strip)):
        files[name] = folder / f"{name}.png"
        image.save(files[name])
    return files


def _content(text: str, images: tuple[str, ...]) -> str | list[dict[str, str]]:
    if not images:
        return text
    return [*({"type": "image"} for _ in images), {"type": "text", "text": text}]


def _opened(names: tuple[str, ...], files: Mapping[str, Path]) -> Any:
    return tuple(open_images([files[name] for name in names])) if names else ()
