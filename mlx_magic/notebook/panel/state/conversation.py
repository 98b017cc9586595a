"""What was asked in a panel and what came back: plain data, no widgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mlx_magic.engine.request import Exchange, Sampling

if TYPE_CHECKING:
    from mlx_magic.engine.generation import Generation
    from mlx_magic.engine.result import VisionResult
    from mlx_magic.images.opening import ImageInput

AnswerState = Literal["running", "done", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was put into a panel.

    Attributes
    ----------
    id : str
        Its own within the panel.
    image : ImageInput
    word : str
        What a ``%%vision`` line would say for it (path, URL or expression);
        ``""`` for one that was dropped, pasted or taken by the camera.
    """

    id: str
    image: ImageInput
    word: str = ""

    @property
    def name(self) -> str:
        """What it is called, for a person."""
        return self.image.source


@dataclass(slots=True)
class Answer:
    """One model's answer to a turn.

    Attributes
    ----------
    model : str
        As the person chose it.
    generation : Generation or None
        On its way or ended; None where it never began.
    result : VisionResult or None
        Once it is there; a cancelled one has its partial text.
    error : str
        One line, where it failed.
    """

    model: str
    generation: Generation | None = None
    result: VisionResult | None = None
    error: str = ""

    @property
    def state(self) -> AnswerState:
        """Where it stands."""
        if self.error:
            return "failed"
        if self.result is None:
            return "running"
        return "cancelled" if self.result.finish_reason in ("cancelled", "timeout") else "done"

    def cancel(self) -> None:
        """Cancel it, if it is on its way."""
        if self.generation is not None and self.state == "running":
            self.generation.cancel()


@dataclass(slots=True)
class Turn:
    """A question with its pictures, and an answer of each model that was asked.

    Attributes
    ----------
    id : str
        Its own within the panel.
    prompt : str
    pictures : tuple of Picture
    answers : list of Answer
        One, or several that are compared.
    system : str or None
    sampling : Sampling
    max_pixels : int or None
    follows : bool
        Whether the turns before it were part of the question.
    """

    id: str
    prompt: str
    pictures: tuple[Picture, ...] = ()
    answers: list[Answer] = field(default_factory=list)
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_pixels: int | None = None
    follows: bool = True

    @property
    def running(self) -> bool:
        """Whether an answer is still on its way."""
        return any(answer.state == "running" for answer in self.answers)

    def cancel(self) -> None:
        """Cancel every answer that is on its way."""
        for answer in self.answers:
            answer.cancel()


def history(turns: Sequence[Turn], model: str) -> tuple[Exchange, ...]:
    """Return what a model gets to read of the turns before its own.

    A turn counts with the model's own answer, else with the first that is whole;
    one without any such answer is left out, and one that did not follow the turns
    before it begins anew.

    Parameters
    ----------
    turns : sequence of Turn
        Oldest first.
    model : str
    """
    exchanges: list[Exchange] = []
    for turn in turns:
        if not turn.follows:
            exchanges.clear()
        done = [a for a in turn.answers if a.state == "done" and a.result is not None]
        if not done:
            continue
        answer = next((a for a in done if a.model == model), done[0])
        assert answer.result is not None
        # As the model was shown them: scaled down, perhaps.
        exchanges.append(Exchange(turn.prompt, answer.result.text, answer.result.images))
    return tuple(exchanges)


MOST_MODELS = 3
"""Models that one question is put to."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the controls say.

    Attributes
    ----------
    system : str or None
    sampling : Sampling
    max_pixels : int or None
    """

    system: str | None
    sampling: Sampling
    max_pixels: int | None
