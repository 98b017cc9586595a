"""Questions and answers of a panel: plain data, no widgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mlx_magic.engine.request import Exchange
from mlx_magic.options import Settings

if TYPE_CHECKING:
    from mlx_magic.engine.generation import Generation
    from mlx_magic.engine.result import VisionResult
    from mlx_magic.images.opening import ImageInput

AnswerState = Literal["running", "done", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class PanelImage:
    """An image in a panel.

    Attributes
    ----------
    id : str
        Unique within the panel.
    image : ImageInput
    word : str
        Its text in a ``%%vision`` line (path, URL or expression); ``""`` if it was dropped,
        pasted or taken by the camera.
    """

    id: str
    image: ImageInput
    word: str = ""

    @property
    def name(self) -> str:
        """Name to show."""
        return self.image.source


@dataclass(slots=True)
class Answer:
    """One model's answer to a turn.

    Attributes
    ----------
    model : str
        As chosen by the user.
    generation : Generation or None
        None if the request could not be started.
    result : VisionResult or None
        None until the answer has ended; a cancelled one has partial text.
    error : str
        One line if it failed, else ``""``.
    """

    model: str
    generation: Generation | None = None
    result: VisionResult | None = None
    error: str = ""

    @property
    def state(self) -> AnswerState:
        """State of the answer."""
        if self.error:
            return "failed"
        if self.result is None:
            return "running"
        return "cancelled" if self.result.finish_reason in ("cancelled", "timeout") else "done"

    def cancel(self) -> None:
        """Cancel the answer if it is running."""
        if self.generation is not None and self.state == "running":
            self.generation.cancel()


@dataclass(slots=True)
class Turn:
    """A question with its images, and the answer of each model.

    Attributes
    ----------
    id : str
        Unique within the panel.
    prompt : str
    images : tuple of PanelImage
    answers : list of Answer
        One, or several to compare.
    settings : Settings
    follows : bool
        Whether the earlier turns were sent with it.
    """

    id: str
    prompt: str
    images: tuple[PanelImage, ...] = ()
    answers: list[Answer] = field(default_factory=list)
    settings: Settings = field(default_factory=Settings)
    follows: bool = True

    @property
    def running(self) -> bool:
        """Whether an answer is running."""
        return any(answer.state == "running" for answer in self.answers)

    def cancel(self) -> None:
        """Cancel all running answers."""
        for answer in self.answers:
            answer.cancel()


def history(turns: Sequence[Turn], model: str) -> tuple[Exchange, ...]:
    """Return the earlier turns that are sent with a question to a model.

    The answer of a turn is the model's own if it is complete, else the first complete one. A
    turn without a complete answer is left out. A standalone turn drops the turns before it.

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
        # The images as the model received them, possibly scaled down.
        exchanges.append(Exchange(turn.prompt, answer.result.text, answer.result.images))
    return tuple(exchanges)


MOST_MODELS = 3
"""Maximum number of models of one question."""
