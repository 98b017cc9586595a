"""A task that one thread works on and any thread may observe or cancel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.download_rate import DownloadRate
from mlx_magic.engine.result import Phase
from mlx_magic.interrupts import Interrupt, deferred

T = TypeVar("T")
Clock = Callable[[], float]

# In these phases the model does not compute for the task, so that nothing has to be unwound:
# cancelling ends it immediately, whatever the inference thread is doing.
ENDS_AT_ONCE: frozenset[Phase] = frozenset({"queued", "downloading", "loading"})


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase has come.

    Attributes
    ----------
    phase : Phase
    done, total : int
        Bytes while downloading or loading, images in the vision phase, tokens in prefill. A
        total of 0 is unknown.
    note : str
        The current activity, for display.
    rate : float
        Recent bytes per second of a download; 0 is unknown.
    """

    phase: Phase
    done: int = 0
    total: int = 0
    note: str = ""
    rate: float = 0.0


class Task(Generic[T]):
    """Base of generations, loads and unloads: phase, progress, cancellation, a future.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    timeout : float, optional
        Seconds from now, after which the task is cancelled.

    Attributes
    ----------
    deadline : float or None
        The time of the timeout, in seconds of the clock.
    future : concurrent.futures.Future
        Gets the outcome. It is never cancelled itself: a cancelled task has an outcome, too.
    token : CancelToken
        Checked by the inference thread.
    notes : list of str
        Messages about side effects for display (such as models that were unloaded), a line each.
    on_cancel : callable
        Called when the task was cancelled and has not ended; on any thread, under no lock.
    """

    def __init__(self, clock: Clock, *, timeout: float | None = None) -> None:
        self.notes: list[str] = []
        self.future: Future[T] = Future()
        # After this the future cannot be cancelled, only the token.
        self.future.set_running_or_notify_cancel()
        self._ended = False
        self._clock = clock
        self._lock = threading.RLock()
        self._progress = Progress("queued")
        self._download_rate = DownloadRate()
        self._since = self.created = clock()
        self.deadline = None if timeout is None else self.created + timeout
        self.token = CancelToken(deadline=self.deadline, clock=clock)
        self.on_cancel: Callable[[], None] = lambda: None
        self._last_phase: Phase = "queued"
        self._spent: dict[Phase, float] = {}

    @property
    def done(self) -> bool:
        """Whether the outcome is decided; the future has it at once."""
        return self._ended

    @property
    def progress(self) -> Progress:
        """The current progress; safe from any thread."""
        if self._progress.phase != "downloading":
            return self._progress
        # Computed on access: the rate must fall while no bytes arrive.
        with self._lock:
            return replace(self._progress, rate=self._download_rate.rate(self._clock()))

    @property
    def elapsed(self) -> float:
        """Seconds since the task was created."""
        return self._clock() - self.created

    def cancel(self) -> None:
        """Request a stop; safe from any thread, and more than once."""
        self.token.cancel()
        with self._lock:
            ends_now = self._progress.phase in ENDS_AT_ONCE
        if ends_now:
            self._finish(self._cancelled_outcome, only_in=ENDS_AT_ONCE)
        if not self._ended:
            self.on_cancel()

    def expire(self) -> None:
        """Cancel the task if its deadline has passed; safe from any thread."""
        if self.token.requested:
            self.cancel()

    def enter(self, phase: Phase, note: str = "") -> None:
        """Begin a phase; for the working thread.

        Raises
        ------
        Cancelled
            When the task has ended, for example by `cancel`.
        """
        self._enter(phase, note)
        self._changed()

    def _enter(self, phase: Phase, note: str = "") -> None:
        with self._lock:
            if self._ended:
                raise Cancelled
            if phase != self._progress.phase:
                self._close_phase()
            self._progress = Progress(phase, note=note)

    def advance(self, done: int, total: int, note: str | None = None) -> None:
        """Report progress within the phase; for the working thread."""
        self._advance(done, total, note)
        self._changed()

    def _advance(self, done: int, total: int, note: str | None = None) -> None:
        with self._lock:
            if not self._ended:
                now = self._progress
                note = now.note if note is None else note
                self._progress = Progress(now.phase, done, total, note)
                if now.phase == "downloading":
                    self._download_rate.report(self._clock(), done, total)

    def succeed(self, outcome: T) -> None:
        """Set the outcome, unless there is one already."""
        self._finish(lambda: outcome)

    def fail(self, error: BaseException) -> None:
        """End with an error, unless there is an outcome already."""
        with self._lock:
            if self._ended:
                return
            self._end()
        self._changed(at_end=True)
        self.future.set_exception(error)

    def stopped(self) -> None:
        """End as cancelled or timed out, with the partial outcome; for the working thread."""
        self._finish(self._cancelled_outcome)

    def abandon(self) -> None:
        """End immediately with the partial outcome, whatever the inference thread does."""
        self.token.cancel()
        self._finish(self._cancelled_outcome)

    def _changed(self, *, at_end: bool = False) -> None:
        """Handle a change; called under no lock, on any thread."""

    def _cancelled_outcome(self) -> T:
        raise NotImplementedError

    def _finish(
        self, outcome: Callable[[], T], *, only_in: Collection[Phase] | None = None
    ) -> None:
        with self._lock:
            if self._ended or (only_in is not None and self._progress.phase not in only_in):
                return
            self._end()
        # Outside the lock: both call foreign code.
        self._changed(at_end=True)
        try:
            self.future.set_result(outcome())
        except Exception as error:
            self.future.set_exception(error)

    def _end(self) -> None:
        self._close_phase()
        self._last_phase = self._progress.phase
        self._progress = Progress("done")
        self._ended = True

    def _close_phase(self) -> None:
        now = self._clock()
        phase = self._progress.phase
        self._spent[phase] = self._spent.get(phase, 0.0) + now - self._since
        self._since = now


def outcome(begin: Callable[[], Task[T]]) -> T:
    """Begin a task and wait for its outcome, on a thread that may get KeyboardInterrupt.

    Raises
    ------
    KeyboardInterrupt
        On an interrupt at any moment, after the task was cancelled.
    """
    with deferred() as interrupt:
        task = begin()
        return wait(task.future, task.cancel, interrupt)


def wait(
    future: Future[T],
    on_interrupt: Callable[[], None] = lambda: None,
    interrupt: Interrupt | None = None,
) -> T:
    """Wait for a future on a thread that may get KeyboardInterrupt.

    Parameters
    ----------
    future : concurrent.futures.Future
    on_interrupt : callable
        Called after an interrupt, before KeyboardInterrupt is raised.
    interrupt : Interrupt, optional
        The one of the enclosing `deferred` block, if there is one.

    Raises
    ------
    KeyboardInterrupt
    """
    if interrupt is None:
        with deferred() as interrupt:
            return wait(future, on_interrupt, interrupt)
    while True:
        if interrupt.came:
            on_interrupt()
            raise KeyboardInterrupt
        try:
            # Short waits: on some platforms a longer wait for a lock blocks Ctrl-C.
            return future.result(timeout=0.1)
        except FutureTimeout:
            # A TimeoutError that is the task's own outcome must not be waited for again.
            if future.done():
                return future.result()
