"""Loads in flight: one for everybody who waits for the same model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.engine import WAIT, Steps, StepSignal, close_steps
from mlx_magic.engine.task import Task
from mlx_magic.formatting import again

_log = logging.getLogger(__name__)


class Loading:
    """A load that belongs to all who wait for it; the engine's thread only.

    They drive it: the first whose turn comes after a slice does the next one. So it
    is nobody's own, and goes on as long as somebody waits.

    Parameters
    ----------
    steps : callable
        Takes this object, and returns the load's slices.

    Attributes
    ----------
    token : CancelToken
        Cancelled once nobody waits any more.
    nbytes : int
        What it will take, as estimated; 0 before room was made for it, and once it is there.
    when_left : callable
        Called when the last who waited has gone, with the model or without it.
    """

    def __init__(self, steps: Callable[[Loading], Steps]) -> None:
        self.token = CancelToken()
        self.nbytes = 0
        self.when_left: Callable[[], None] = lambda: None
        self._waiting: list[tuple[Task[Any], str]] = []
        self._progress: tuple[int, int, str] | None = None
        self._slices_done = 0
        self._ended = False
        self._error: Exception | None = None
        self._steps = steps(self)

    @property
    def names(self) -> list[str]:
        """What those call the model who still want it; empty if nobody does."""
        return [name for task, name in self._waiting if not task.token.requested]

    @property
    def is_over(self) -> bool:
        """Whether it has ended; joining it is no use then."""
        return self._ended

    def note(self, line: str) -> None:
        """Tell the one who has waited longest what happened on the way."""
        for task, _ in self._waiting[:1]:
            task.notes.append(line)

    def advance(self, done: int, total: int, note: str) -> None:
        """Take the progress, for all who wait. See `LoadProgress`."""
        self._progress = (done, total, note)

    @contextlib.contextmanager
    def joined(self, task: Task[Any], name: str) -> Iterator[None]:
        """Wait for it within this block; when the last leaves, it ends."""
        waiter = (task, name)
        self._waiting.append(waiter)
        try:
            yield
        finally:
            self._waiting.remove(waiter)
            if not self._waiting:
                self._stop()
                self.when_left()

    def follow(self, task: Task[Any]) -> Steps:
        """Go on until the load has ended, doing its slices where they are due.

        Raises
        ------
        Cancelled
            When this one was cancelled; the load goes on for the others.
        Exception
            Why the load failed.
        """
        # Nothing in the first round: all who came with the first join before it can fail.
        task.token.checkpoint()
        yield None
        slices_seen = 0
        while not self._ended:
            task.token.checkpoint()
            signal = self._slice() if slices_seen == self._slices_done else WAIT
            slices_seen = self._slices_done
            if self._progress is not None:
                task.advance(*self._progress)
            if not self._ended:
                yield signal
        if self._error is not None:
            raise again(self._error)
        task.token.checkpoint()

    def _slice(self) -> StepSignal | None:
        self._slices_done += 1
        try:
            return next(self._steps)
        except StopIteration:
            self._mark_ended()
        except Exception as error:
            self._mark_ended()
            self._error = error
        return None

    def _mark_ended(self) -> None:
        # Some may not have left yet, but it takes nothing any more.
        self._ended, self.nbytes = True, 0

    def _stop(self) -> None:
        """End it, if it has not ended: it may clean up at its next look at the token."""
        if not self._ended:
            self.token.cancel()
            self._slice()
            if self._error is not None and not isinstance(self._error, Cancelled):
                _log.warning("A load failed while it was cancelled: %s", self._error)
            close_steps(self._steps)
            self._mark_ended()


class Loads:
    """The loads in flight, by model; changed on the engine's thread only."""

    def __init__(self) -> None:
        self._loading: dict[Hashable, Loading] = {}

    @property
    def nbytes(self) -> int:
        """Estimate of what they will take together, in bytes."""
        return sum(loading.nbytes for loading in list(self._loading.values()))

    def __contains__(self, key: Hashable) -> bool:
        return key in self._loading

    @contextlib.contextmanager
    def joined(
        self, key: Hashable, task: Task[Any], name: str, begin: Callable[[Loading], Steps]
    ) -> Iterator[Loading]:
        """Wait for the load of a model within this block; it begins if nobody has begun it.

        Parameters
        ----------
        key : hashable
            The model.
        task : Task
            Who waits.
        name : str
            What they call it.
        begin : callable
            Takes the new `Loading`, and returns its slices.
        """
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = Loading(begin)
        try:
            with loading.joined(task, name):
                yield loading
        finally:
            if loading.is_over and self._loading.get(key) is loading:
                del self._loading[key]

    def forget(self) -> None:
        """Forget them all: their thread has died."""
        self._loading.clear()
