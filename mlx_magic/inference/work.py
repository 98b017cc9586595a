"""A piece of work that one thread does and any thread may watch or cancel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from mlx_magic.inference.cancel import Cancelled, CancelToken
from mlx_magic.inference.request import Phase

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
        Bytes while downloading or loading, tokens while reading; total 0 is unknown.
    note : str
        What is being done, for a person.
    """

    phase: Phase
    done: int = 0
    total: int = 0
    note: str = ""


class Work(Generic[T]):
    """Base of a generation and of a load: phase, progress, cancelling, a future.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.

    Attributes
    ----------
    future : concurrent.futures.Future
        Holds the outcome. It is never cancelled itself: a cancelled piece of
        work has an outcome too.
    token : CancelToken
        What the inference thread looks at.
    """

    def __init__(self, clock: Clock) -> None:
        self.future: Future[T] = Future()
        self.token = CancelToken()
        self._clock = clock
        self._lock = threading.RLock()
        self._progress = Progress("queued")
        self._since = self.created = clock()
        self._spent: dict[Phase, float] = {}

    @property
    def done(self) -> bool:
        """Whether there is an outcome."""
        return self.future.done()

    @property
    def progress(self) -> Progress:
        """Where the work stands; safe from any thread."""
        return self._progress

    @property
    def elapsed(self) -> float:
        """Seconds since the work was asked for."""
        return self._clock() - self.created

    def cancel(self) -> None:
        """Ask for the work to stop; safe from any thread, and more than once."""
        self.token.cancel()
        with self._lock:
            if not self.done and self._progress.phase in ENDS_AT_ONCE:
                self._finish(self._cancelled_outcome)

    def enter(self, phase: Phase, note: str = "") -> None:
        """Begin a phase; for the working thread.

        Raises
        ------
        Cancelled
            When the work has been cancelled; it ends here.
        """
        with self._lock:
            if self.done:
                raise Cancelled
            if phase != self._progress.phase:
                self._close_phase()
            self._progress = Progress(phase, note=note)

    def advance(self, done: int, total: int, note: str | None = None) -> None:
        """Report progress within the phase; for the working thread."""
        now = self._progress
        self._progress = Progress(now.phase, done, total, now.note if note is None else note)

    def succeed(self, outcome: T) -> None:
        """Set the outcome, unless there is one already."""
        self._finish(lambda: outcome)

    def fail(self, error: BaseException) -> None:
        """End with an error, unless there is an outcome already."""
        with self._lock:
            if not self.done:
                self._close_phase()
                self._progress = Progress("done")
                self.future.set_exception(error)

    def stopped(self) -> None:
        """End as cancelled, keeping what there is; for the working thread."""
        self._finish(self._cancelled_outcome)

    def _cancelled_outcome(self) -> T:
        raise NotImplementedError

    def _finish(self, outcome: Callable[[], T]) -> None:
        with self._lock:
            if not self.done:
                self._close_phase()
                self._progress = Progress("done")
                self.future.set_result(outcome())

    def _close_phase(self) -> None:
        now = self._clock()
        phase = self._progress.phase
        self._spent[phase] = self._spent.get(phase, 0.0) + now - self._since
        self._since = now


def amount(size: int) -> str:
    """Return a number of bytes for a person: ``1.2 GB``, ``340 MB``, ``12 KB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            value = size / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{size} B"
