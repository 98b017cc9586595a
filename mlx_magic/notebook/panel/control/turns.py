"""The turns of a panel: asking, streaming the answers, replacing, clearing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mlx_magic.engine.request import AnswerSchema, GenerationRequest
from mlx_magic.errors import MlxMagicError, RequestError
from mlx_magic.notebook.panel.control.live_answer import AnswerMessages, LiveAnswer
from mlx_magic.notebook.panel.control.question_images import image_state
from mlx_magic.notebook.panel.state.conversation import (
    MOST_MODELS,
    Answer,
    PanelImage,
    Turn,
    history,
)
from mlx_magic.options import Settings
from mlx_magic.session import Session


class TurnMessages(AnswerMessages, Protocol):
    """Receives the messages of all turns."""

    def turn(self, turn: dict[str, Any]) -> None:
        """Add a turn, or replace the one with the same id."""

    def answer(self, turn: str, index: int, answer: dict[str, Any]) -> None:
        """Replace an answer."""

    def drop(self, ids: list[str]) -> None:
        """Remove turns."""


class Turns:
    """The conversation of one panel.

    Attributes
    ----------
    turns : list of Turn
        Oldest first.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._out: TurnMessages
        self._live: dict[str, list[LiveAnswer]] = {}
        self._ended: list[tuple[Turn, LiveAnswer]] = []
        self._ids = itertools.count(1)
        # Reentrant: a message sent under it may call back.
        self._lock = threading.RLock()

    def show_on(self, out: TurnMessages) -> None:
        """Set the receiver of messages, before the first question."""
        self._out = out

    @property
    def running(self) -> bool:
        """Whether an answer is running."""
        return any(turn.running for turn in self.turns)

    def ask(
        self,
        session: Session,
        prompt: str,
        models: Sequence[str],
        *,
        images: Sequence[PanelImage] = (),
        settings: Settings,
        schema: AnswerSchema | None = None,
        follows: bool = True,
        replaces: str = "",
    ) -> Turn:
        """Ask one model, or several the same question; returns at once.

        Parameters
        ----------
        session : Session
        prompt : str
        models : sequence of str
        images : sequence of PanelImage
        settings : Settings
        schema : AnswerSchema, optional
            What the expression in `settings` names.
        follows : bool
            Whether the earlier turns are sent with it.
        replaces : str
            Id of a turn that is replaced, with all later turns.

        Raises
        ------
        RequestError
            If the prompt is empty, or there are no models or too many.
        """
        models = list(dict.fromkeys(models))
        if not 1 <= len(models) <= MOST_MODELS:
            raise RequestError(
                f"{len(models)} models: choose one, or up to {MOST_MODELS} to compare.",
                option="model",
            )
        with self._lock:
            before = self.turns[: self.index_of(replaces)]
            given = settings
            if schema is not None:
                given = settings.replaced({"schema": schema, "format": "json"})
            requests = [
                given.request(
                    prompt, model=model, history=history(before, model) if follows else ()
                )
                for model in models
            ]
            # After the checks, so that an invalid question drops no turns.
            self._drop(self.turns[len(before) :])
            turn = Turn(
                f"t{next(self._ids)}",
                prompt,
                tuple(images),
                [_start_answer(session, request, images, settings) for request in requests],
                settings=settings,
                follows=follows,
            )
            self.turns.append(turn)
            self._live[turn.id] = [
                LiveAnswer(turn.id, index, answer, self._out)
                for index, answer in enumerate(turn.answers)
            ]
            self._out.turn(self.turn_state(turn))
        return turn

    def update(self, prepare: Callable[[Turn, LiveAnswer], None]) -> bool:
        """Send updates of running answers, and the whole state of ended ones.

        Parameters
        ----------
        prepare : callable
            Called with each ended answer before it is sent.

        Returns
        -------
        bool
            Whether any has ended.
        """
        with self._lock:
            for turn in [turn for turn in self.turns if turn.running]:
                for live in self._live[turn.id]:
                    if live.update():
                        self._ended.append((turn, live))
        ended = bool(self._ended)
        while self._ended:
            turn, live = self._ended[0]
            if turn.id in self._live:
                prepare(turn, live)
                self.show(turn, live)
            # Removed last: an answer that could not be sent is sent by the next update.
            self._ended.pop(0)
        return ended

    def show(self, turn: Turn, live: LiveAnswer) -> None:
        """Send the whole state of an answer."""
        with self._lock:
            result = live.answer.result
            if result is not None and result.seen and turn.images:
                self._out.turn(self.turn_state(turn))
            else:
                self._out.answer(turn.id, live.index, live.state())

    def cancel(self) -> None:
        """Cancel all running answers; safe from any thread."""
        for turn in list(self.turns):
            turn.cancel()

    def cancel_one(self, turn: str, index: int) -> None:
        """Cancel one of several compared answers."""
        self.live(turn, index).answer.cancel()

    def clear(self) -> None:
        """Cancel all running answers and drop all turns."""
        with self._lock:
            self._drop(self.turns)

    def find(self, turn: str) -> Turn:
        """Return a turn.

        Raises
        ------
        RequestError
            If there is no turn with this id.
        """
        with self._lock:
            index = self.index_of(turn)
            if index == len(self.turns):
                raise RequestError("That turn no longer exists.", option="turn")
            return self.turns[index]

    def live(self, turn: str, index: int) -> LiveAnswer:
        """Return the live state of one answer.

        Raises
        ------
        RequestError
            If it does not exist.
        """
        self.find(turn)
        with self._lock:
            answers = self._live[turn]
        if not 0 <= index < len(answers):
            raise RequestError("That answer no longer exists.", option="turn")
        return answers[index]

    def state(self) -> list[dict[str, Any]]:
        """Return the state of all turns, for a new page."""
        with self._lock:
            return [self.turn_state(turn) for turn in self.turns]

    def turn_state(self, turn: Turn) -> dict[str, Any]:
        """Return the state of one turn."""
        seen = next((a.result.seen for a in turn.answers if a.result and a.result.seen), ())
        sizes = seen if len(seen) == len(turn.images) else [""] * len(turn.images)
        return {
            "id": turn.id,
            "number": self.number(turn),
            "prompt": turn.prompt,
            "system": turn.settings.system or "",
            "images": [
                image_state(panel_image, size)
                for panel_image, size in zip(turn.images, sizes, strict=True)
            ],
            "answers": [live.state() for live in self._live[turn.id]],
            "follows": turn.follows,
        }

    def refresh(self, turn: str) -> None:
        """Send a turn again, or that it was dropped, to a page that missed a message."""
        with self._lock:
            try:
                self._out.turn(self.turn_state(self.find(turn)))
            except RequestError:
                self._out.drop([turn])

    def number(self, turn: Turn) -> int:
        """Return a turn's number, from 1."""
        with self._lock:
            return self.index_of(turn.id) + 1

    def before(self, turn: Turn) -> list[Turn]:
        """Return the turns before a turn."""
        with self._lock:
            return self.turns[: self.index_of(turn.id)]

    def index_of(self, turn: str) -> int:
        """Return the index of a turn; the number of turns if it does not exist."""
        matches = (at for at, found in enumerate(self.turns) if found.id == turn)
        return next(matches, len(self.turns))

    def _drop(self, turns: Sequence[Turn]) -> None:
        dropped = list(turns)
        if not dropped:
            return
        for turn in dropped:
            turn.cancel()
            self._live.pop(turn.id, None)
        self.turns = [turn for turn in self.turns if turn not in dropped]
        self._out.drop([turn.id for turn in dropped])


def _start_answer(
    session: Session, request: GenerationRequest, images: Sequence[PanelImage], settings: Settings
) -> Answer:
    """Start a request; an error of the start is a failed answer."""
    answer = Answer(request.model)
    opened = [(panel_image.name, panel_image.image) for panel_image in images]
    try:
        answer.generation = session.start(
            request,
            images=opened,
            max_pixels=settings.max_pixels,
            normalize=settings.normalize,
        )
    except MlxMagicError as error:
        answer.error = str(error)
    return answer
