"""Loads in flight: tasks that wait for the same model share one load."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.engine import WAIT, Steps, StepSignal, close_steps
from mlx_magic.engine.task import Task
from mlx_magic.formatting import copy_error

_log = logging.getLogger(__name__)


class Loading:
    """A load that is shared by all tasks that wait for it; used on the engine's thread only.

    The waiting tasks run it: the first one that is scheduled after a slice runs the next slice.
    So it belongs to none of them, and continues as long as one waits.

    Parameters
    ----------
    steps : callable
        Called with this object; returns the generator of the load.

    Attributes
    ----------
    token : CancelToken
        Cancelled when no task waits any more.
    nbytes : int
        Estimated memory; 0 before memory was reserved, and after the load has ended.
    on_last_left : callable
        Called when the last waiting task has left, with the model or without it.
    """

    def __init__(self, steps: Callable[[Loading], Steps]) -> None:
        self.token = CancelToken()
        self.nbytes = 0
        self.on_last_left: Callable[[], None] = lambda: None
        self._waiting: list[tuple[Task[Any], str]] = []
        self._progress: tuple[int, int, str] | None = None
        self._slices_done = 0
        self._ended = False
        self._error: Exception | None = None
        self._steps = steps(self)

    @property
    def names(self) -> list[str]:
        """The names by which waiting tasks call the model; empty if all were cancelled."""
        return [name for task, name in self._waiting if not task.token.requested]

    @property
    def is_over(self) -> bool:
        """Whether the load has ended and can no longer be joined."""
        return self._ended

    def note(self, line: str) -> None:
        """Add a note to the task that has waited longest."""
        for task, _ in self._waiting[:1]:
            task.notes.append(line)

    def advance(self, done: int, total: int, note: str) -> None:
        """Record the progress for all waiting tasks. See `LoadProgress`."""
        self._progress = (done, total, note)

    @contextlib.contextmanager
    def joined(self, task: Task[Any], name: str) -> Iterator[None]:
        """Wait for the load within this block; it ends when the last task leaves."""
        waiter = (task, name)
        self._waiting.append(waiter)
        try:
            yield
        finally:
            self._waiting.remove(waiter)
            if not self._waiting:
                self._stop()
                self.on_last_left()

    def follow(self, task: Task[Any]) -> Steps:
        """Wait until the load has ended, and run its slices when they are due.

        Raises
        ------
        Cancelled
            When `task` was cancelled; the load continues for the others.
        Exception
            A copy of the error of the load.
        """
        # No slice in the first round, so that tasks of the same round join before it can fail.
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
            raise copy_error(self._error)
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
        # Tasks may still be joined, but no memory is reserved any more.
        self._ended, self.nbytes = True, 0

    def _stop(self) -> None:
        """Cancel the load, if it has not ended; it cleans up at its next cancellation point."""
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
        """Estimated memory of all loads together, in bytes."""
        return sum(loading.nbytes for loading in list(self._loading.values()))

    def __contains__(self, key: Hashable) -> bool:
        return key in self._loading

    @contextlib.contextmanager
    def joined(
        self, key: Hashable, task: Task[Any], name: str, begin: Callable[[Loading], Steps]
    ) -> Iterator[Loading]:
        """Wait for the load of a model within this block; start it if there is none.

        Parameters
        ----------
        key : hashable
            The model.
        task : Task
            The waiting task.
        name : str
            The name by which the task calls the model.
        begin : callable
            Called with the new `Loading`; returns its generator.
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
        """Drop all loads: their thread has died."""
        self._loading.clear()
