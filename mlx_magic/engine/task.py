"""A piece of work that one thread does and any thread may watch or cancel."""

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

# Until the model itself works for this request, nothing has to be unwound:
# cancelling ends the work at once, whatever the inference thread is busy with.
ENDS_AT_ONCE: frozenset[Phase] = frozenset({"queued", "downloading", "loading"})


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase has come.

    Attributes
    ----------
    phase : Phase
    done, total : int
        Bytes while downloading or loading, images while seeing, tokens while reading; total 0
        is unknown.
    note : str
        What is being done, for a person.
    rate : float
        Bytes per second of the last seconds, while downloading; 0 is unknown.
    """

    phase: Phase
    done: int = 0
    total: int = 0
    note: str = ""
    rate: float = 0.0


class Task(Generic[T]):
    """Base of a generation and of a load: phase, progress, cancelling, a future.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    timeout : float, optional
        Seconds from now, after which it is to stop.

    Attributes
    ----------
    deadline : float or None
        When it is to stop, in seconds of the clock.
    future : concurrent.futures.Future
        Holds the outcome. It is never cancelled itself: a cancelled piece of
        work has an outcome too.
    token : CancelToken
        What the inference thread looks at.
    notes : list of str
        What happened on its way that a person should know, a line each.
    on_cancel : callable
        Called when it was asked to stop and has not ended; on any thread, under no lock.
    """

    def __init__(self, clock: Clock, *, timeout: float | None = None) -> None:
        self.notes: list[str] = []
        self.future: Future[T] = Future()
        # From here on nobody can cancel the future itself, past the token.
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
        """Where the work stands; safe from any thread."""
        if self._progress.phase != "downloading":
            return self._progress
        # Reckoned when somebody looks: it has to fall while nothing arrives.
        with self._lock:
            return replace(self._progress, rate=self._download_rate.rate(self._clock()))

    @property
    def elapsed(self) -> float:
        """Seconds since the work was asked for."""
        return self._clock() - self.created

    def cancel(self) -> None:
        """Ask for the work to stop; safe from any thread, and more than once."""
        self.token.cancel()
        with self._lock:
            ends_now = self._progress.phase in ENDS_AT_ONCE
        if ends_now:
            self._finish(self._cancelled_outcome, only_in=ENDS_AT_ONCE)
        if not self._ended:
            self.on_cancel()

    def expire(self) -> None:
        """Stop it if its time is up; safe from any thread."""
        if self.token.requested:
            self.cancel()

    def enter(self, phase: Phase, note: str = "") -> None:
        """Begin a phase; for the working thread.

        Raises
        ------
        Cancelled
            When the work has been cancelled; it ends here.
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
        """End as cancelled or timed out, keeping what there is; for the working thread."""
        self._finish(self._cancelled_outcome)

    def abandon(self) -> None:
        """End it now, wherever the inference thread is, with what there is; on any thread."""
        self.token.cancel()
        self._finish(self._cancelled_outcome)

    def _changed(self, *, at_end: bool = False) -> None:
        """Hear that there is something new; under no lock, on any thread."""

    def _cancelled_outcome(self) -> T:
        raise NotImplementedError

    def _finish(
        self, outcome: Callable[[], T], *, only_in: Collection[Phase] | None = None
    ) -> None:
        with self._lock:
            if self._ended or (only_in is not None and self._progress.phase not in only_in):
                return
            self._end()
        # Outside of the lock: both call foreign code.
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
    """Begin a piece of work and wait for its outcome, on a thread that Ctrl-C may reach.

    Raises
    ------
    KeyboardInterrupt
        On an interrupt at any moment, once the work was asked to stop.
    """
    with deferred() as interrupt:
        task = begin()
        return wait(task.future, task.cancel, interrupt)


def wait(
    future: Future[T],
    on_interrupt: Callable[[], None] = lambda: None,
    interrupt: Interrupt | None = None,
) -> T:
    """Wait for a future on a thread that Ctrl-C may reach.

    Parameters
    ----------
    future : concurrent.futures.Future
    on_interrupt : callable
        Called once there was an interrupt, before it is raised.
    interrupt : Interrupt, optional
        That of the guarded stretch that this is in.

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
            # In short pieces: a lock held for longer keeps Ctrl-C out on some platforms.
            return future.result(timeout=0.1)
        except FutureTimeout:
            # The work's own TimeoutError must not be waited on for ever.
            if future.done():
                return future.result()
