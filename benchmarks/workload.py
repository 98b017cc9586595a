"""Questions to the peers and their answers: plain data, sent between processes as JSON."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

QUESTIONS = (
    "Describe this picture in every detail.",
    "What is in the middle?",
    "Which colours do you see, and where are they?",
    "Is there anything round in it? Say why you think so.",
    "What would you call this picture?",
    "How large is the square compared with the whole picture?",
    "What is at the left edge?",
    "Write a caption for a newspaper.",
)


SPECIAL = re.compile(r"<[|/]?[a-z_]+[|]?>")


@dataclass(frozen=True, slots=True)
class Ask:
    """A question about an image, alone or as the next turn of a chat.

    Attributes
    ----------
    question : str
    image : str
        Path of the file. In a chat it belongs to the first turn.
    history : tuple of (str, str)
        Earlier questions and answers, oldest first.
    more : tuple of str
        Further pictures of the question; for ours only.
    """

    question: str
    image: str
    history: tuple[tuple[str, str], ...] = ()
    more: tuple[str, ...] = ()

    def messages(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the chat in the format of OpenAI's endpoints and of chat templates.

        Parameters
        ----------
        image : dict
            The part for the image.
        """
        turns: list[dict[str, Any]] = []
        for question, answer in (*self.history, (self.question, None)):
            words: list[dict[str, Any]] = [{"type": "text", "text": question}]
            turns.append({"role": "user", "content": words if turns else [image, *words]})
            if answer is not None:
                turns.append({"role": "assistant", "content": answer})
        return turns


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; times are in seconds from the start of the burst.

    Attributes
    ----------
    first, last : float
        Times of the first and the last token.
    tokens, prompt_tokens, cached_tokens, image_tokens : int
        0 if the peer does not report it.
    text : str
        Without outer whitespace, in which tokenizers differ.
    step : float
        Median seconds from one token to the next, which few slow steps do not change. 0 for fewer
        than two tokens.
    """

    first: float
    last: float
    tokens: int
    text: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    step: float = 0.0

    @classmethod
    def of(cls, times: Sequence[float], tokens: int, text: str, **more: int) -> Answer:
        """Return an answer from the times of its tokens.

        Parameters
        ----------
        times : sequence of float
            At least one.
        tokens, text, **more
            See `Answer`.
        """
        steps = [later - earlier for earlier, later in itertools.pairwise(times)]
        step = statistics.median(steps) if steps else 0.0
        return cls(times[0], times[-1], tokens, text, step=step, **more)

    @property
    def decode(self) -> float:
        """Tokens per second after the first one."""
        return (self.tokens - 1) / (self.last - self.first)


@dataclass(frozen=True, slots=True)
class Burst:
    """The answers to concurrent questions.

    Attributes
    ----------
    wall : float
        Seconds until all had ended.
    answers : tuple of Answer
        In the order of the questions.
    peak : int
        Peak bytes of MLX; 0 is unknown.
    """

    wall: float
    answers: tuple[Answer, ...]
    peak: int = 0

    @property
    def rate(self) -> float:
        """Tokens per second of all answers together."""
        return sum(answer.tokens for answer in self.answers) / self.wall

    @property
    def last_first(self) -> float:
        """Seconds until the last request had its first token."""
        return max(answer.first for answer in self.answers)

    @property
    def texts(self) -> list[str]:
        """The answers' texts."""
        return [answer.text for answer in self.answers]

    def as_json(self) -> dict[str, Any]:
        """Return the data for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> Burst:
        """Make a burst from the data of `as_json`."""
        answers = tuple(Answer(**answer) for answer in held["answers"])
        return cls(held["wall"], answers, held["peak"])

    def numbers(self) -> dict[str, Any]:
        """Return the figures without the texts, as a sample."""
        return {
            "wall": self.wall,
            "tokens": sum(answer.tokens for answer in self.answers),
            "last_first": self.last_first,
            "cached_tokens": sum(answer.cached_tokens for answer in self.answers),
            "prompt_tokens": sum(answer.prompt_tokens for answer in self.answers),
            "step": statistics.median(answer.step for answer in self.answers),
        }


class DrawnImages:
    """Draws different images, and writes them to a folder.

    Parameters
    ----------
    folder : Path
    size : (int, int)
        Width and height in pixels.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (640, 480)) -> None:
        self._folder = folder
        self._size = size
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self) -> str:
        """Write a new image; returns its path."""
        import numpy as np
        from PIL import Image

        width, height = self._size
        chance = np.random.default_rng(self._count)
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[..., self._count % 3] = np.linspace(60, 255, width).astype(np.uint8)
        left, top = chance.integers(0, width // 2), chance.integers(0, height // 2)
        square = chance.integers(0, 256, 3)
        pixels[top : top + height // 3, left : left + width // 3] = square
        path = self._folder / f"image-{self._count}.png"
        Image.fromarray(pixels).save(path)
        self._count += 1
        return str(path)


def load(images: DrawnImages, count: int, turn: int, *, same: bool) -> list[Ask]:
    """Make new questions.

    The prefix cache of a peer must not contain whole prompts of an earlier run.

    Parameters
    ----------
    images : DrawnImages
    count : int
    turn : int
        Number of this run, which changes the words.
    same : bool
        Whether all are about one image.
    """
    one = images.draw() if same else None
    return [
        Ask(
            f"Question {turn}.{number}: {QUESTIONS[number % len(QUESTIONS)]}",
            one or images.draw(),
        )
        for number in range(count)
    ]


def matches(texts: Sequence[str], others: Sequence[str]) -> int:
    """Count the pairs of equal texts.

    Not compared are parts that the libraries show differently: bytes that are not characters,
    spaces, and special tokens, which models here write instead of an end.
    """
    return sum(_shown(a) == _shown(b) for a, b in zip(texts, others, strict=True))


def _shown(text: str) -> str:
    return "".join(SPECIAL.sub("", text).replace("\ufffd", "").split())
