"""The one thread that MLX belongs to: it goes round the work, a slice of each in turn."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from mlx_magic import forks
from mlx_magic.errors import EngineError
from mlx_magic.formatting import one_line

_log = logging.getLogger(__name__)

T = TypeVar("T")
OnError = Callable[[BaseException], None]


class StepSignal(Enum):
    """What a piece of work may say as it yields."""

    WAIT = "wait"
    """That it has nothing to do in this round."""


WAIT = StepSignal.WAIT
Steps = Generator[StepSignal | None, None, None]

PAUSE = 0.005
"""Seconds that the thread sleeps after a round in which nobody had anything to do."""

FORKED = (
    "This process was forked from one with an inference thread, which stayed there: "
    "start it with 'spawn'."
)
IDLE = 2.0
"""Seconds without work after which the thread tidies up."""

BUSY = 30.0
"""Seconds of work after which it does so in between."""

_CLOSING = "The kernel is shutting down: this request was dropped."
_DIED = (
    "The inference thread died{}: all that ran on it ended, and its models are gone. "
    "Ask again: a new one loads them anew."
)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    steps: Steps
    on_error: OnError


class Engine:
    """Runs work in slices, going round it, on one thread of its own.

    MLX's streams are thread-local and a lazy array fails on another thread:
    everything that loads, evaluates or frees arrays goes through here. A piece
    of work is a generator. After every ``yield`` all the others get a slice
    before it gets its next: nobody waits for the end of another's load or answer,
    only for its slice. One that yields `WAIT` had nothing to do; a round of
    nothing else lets the thread sleep for `PAUSE`, or until there is new work.

    An ``Exception`` ends its own piece of work. Anything worse (``SystemExit`` from
    foreign code, say) ends the thread: all work on it fails with an `EngineError`,
    and the next work gets a fresh thread. See `when_lost`.

    Parameters
    ----------
    threaded : bool
        False leaves the thread out: tests call `step` by hand.
    at_end : callable, optional
        Called on a thread before it ends.
    settle : callable, optional
        Called on the thread before it rests: waits for what MLX does in the background.
    tidy : callable, optional
        Called on the thread `IDLE` seconds after it has done some work, and each `BUSY` seconds
        while it works.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self,
        *,
        threaded: bool = True,
        at_end: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
        tidy: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threaded = threaded
        self._at_end = at_end
        self._settle = settle
        self._tidy = tidy
        self._clock = clock
        self._tidied = clock()
        self._untidy = False
        self._rests = 0
        self._resting = False
        self._urgent_calls: deque[tuple[Callable[[], None], OnError]] = deque()
        self._jobs: deque[_Job] = deque()
        self._idle = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False
        self._when_lost: list[Callable[[], None]] = []
        self._unreachable_jobs: list[_Job] = []

    @property
    def threaded(self) -> bool:
        """Whether it has a thread; else tests step it."""
        return self._threaded

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Say what is called when the thread has died, before anybody learns of it.

        Arrays of the dead thread cannot be used on the next one: `callback` is to
        forget them. It must be quick, and may be called on any thread.
        """
        self._when_lost.append(callback)

    def submit(self, steps: Steps, on_error: OnError) -> None:
        """Add a piece of work to the round.

        Parameters
        ----------
        steps : generator
            The work; runs on the engine's thread.
        on_error : callable
            Called there with whatever `steps` raises, or with an `EngineError`.

        Raises
        ------
        EngineError
            When the engine is closed.
        """
        with self._changed:
            self._ensure_thread()
            self._jobs.append(_Job(steps, on_error))
            self._idle = 0
            self._changed.notify()

    def hurry(self, steps: Steps) -> None:
        """Give a piece of work the next slice; safe from any thread.

        For one that is to stop: that must not wait for a round of all the others.
        """
        with self._changed:
            # The head may be running, and stays where it is.
            at = next((at for at, job in enumerate(self._jobs) if job.steps is steps), 0)
            if at > 1:
                job = self._jobs[at]
                del self._jobs[at]
                self._jobs.insert(1, job)
            self._idle = 0
            self._changed.notify()

    def call(self, function: Callable[[], T], *, soon: bool = False) -> Future[T]:
        """Run one function on the engine's thread.

        Parameters
        ----------
        function : callable
        soon : bool
            After the slice that is running, not in its turn.

        Returns
        -------
        concurrent.futures.Future
            Its value or its error.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        def steps() -> Steps:
            run()
            yield from ()

        if not soon:
            self.submit(steps(), future.set_exception)
            return future
        with self._changed:
            self._ensure_thread()
            self._urgent_calls.append((run, future.set_exception))
            self._changed.notify()
        return future

    def rest(self, seconds: float) -> bool:
        """Let the thread come to rest between two slices, until `go_on`; on any thread.

        Nothing runs in MLX's background then, and the engine's lock is held by the caller: a
        process that is forked now finds both as they should be.

        Parameters
        ----------
        seconds : float
            To wait at most.

        Returns
        -------
        bool
            Whether it rests.
        """
        self._changed.acquire()
        self._rests += 1
        if self._thread is threading.current_thread():
            self._settle()
            return True
        self._changed.notify_all()
        return self._changed.wait_for(lambda: self._resting or self._thread is None, seconds)

    def go_on(self) -> None:
        """Let the thread work again, on the thread that called `rest`."""
        self._rests -= 1
        self._changed.notify_all()
        self._changed.release()

    def step(self) -> bool:
        """Do one slice: of the piece of work whose turn it is.

        Returns
        -------
        bool
            Whether there was any work.
        """
        if self._urgent_calls:
            self._urgent_calls.popleft()[0]()
            return True
        if not self._jobs:
            return False
        # It stays at the head meanwhile: whatever happens, it is not lost.
        job = self._jobs[0]
        waits, ended = False, True
        try:
            signal: object = next(job.steps)
            waits, ended = signal is WAIT, False
        except StopIteration:
            pass
        except Exception as error:
            _report_error(job.on_error, error)
        with self._changed:
            if self._jobs and self._jobs[0] is job:
                self._jobs.popleft()
                if not ended:
                    # To the end of the round: everybody's next slice comes before its own.
                    self._jobs.append(job)
            self._idle = self._idle + 1 if waits else 0
        return True

    def close(self, timeout: float = 5.0) -> None:
        """Take no more work, let go of what there is, and end the thread.

        Parameters
        ----------
        timeout : float
            Seconds to wait for the slice that is running.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is None:
            self._end_all(_CLOSING)
        elif thread is not threading.current_thread():
            thread.join(timeout)

    def _ensure_thread(self) -> None:
        """Start the thread if need be; under the lock."""
        if self._closed:
            raise EngineError("The inference thread is closed: restart the kernel.")
        if self._process != os.getpid():
            raise EngineError(FORKED)
        if self._threaded and self._thread is None:
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="mlx-magic", daemon=True)
        guard = threading.Thread(
            target=self._guard, args=(thread,), name="mlx-magic-guard", daemon=True
        )
        thread.start()
        guard.start()
        self._thread = thread
        # A daemon thread inside MLX while the interpreter goes down can crash it.
        atexit.unregister(self.close)
        atexit.register(self.close)
        forks.guard(self)

    def _run(self) -> None:
        try:
            self._serve()
            message = _CLOSING
        except BaseException as error:
            # Its frames would hold arrays: only its words are kept.
            message = _DIED.format(f" ({type(error).__name__}: {one_line(error)})")
            self._call_lost_callbacks(message)
        self._end_all(message)
        self._at_end()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._has_work:
                    if not self._changed.wait(IDLE if self._untidy else None):
                        break
                has_work = self._has_work
                if self._rests:
                    self._rest_until_released()
                    continue
                if self._closed and not self._urgent_calls:
                    return
                if has_work and self._idle >= len(self._jobs) and not self._urgent_calls:
                    self._idle = 0
                    self._changed.wait(PAUSE)
                    continue
            if has_work:
                self.step()
                self._untidy = True
            if not has_work or self._clock() - self._tidied > BUSY:
                self._tidy_up()

    @property
    def _has_work(self) -> bool:
        """Whether the thread has something to do; under the lock."""
        return bool(self._jobs or self._urgent_calls or self._closed or self._rests)

    def _tidy_up(self) -> None:
        self._untidy = False
        self._tidy()
        self._tidied = self._clock()

    def _rest_until_released(self) -> None:
        """Rest for as long as somebody wants it; under the lock."""
        self._settle()
        self._resting = True
        self._changed.notify_all()
        self._changed.wait_for(lambda: not self._rests)
        self._resting = False

    def _guard(self, thread: threading.Thread) -> None:
        """Wait until the thread ends, for the case that it cannot say so itself."""
        thread.join()
        with self._changed:
            if self._thread is not thread:
                return
        message = _DIED.format("")
        self._call_lost_callbacks(message)
        self._end_all(message, on_thread=False)

    def _call_lost_callbacks(self, message: str) -> None:
        _log.warning(message)
        for callback in self._when_lost:
            try:
                callback()
            except BaseException:
                _log.exception("What the thread held could not be forgotten.")

    def _end_all(self, message: str, *, on_thread: bool = True) -> None:
        """Let go of all work and say why; from here on new work gets a fresh thread."""
        with self._changed:
            jobs, calls = list(self._jobs), list(self._urgent_calls)
            self._jobs.clear()
            self._urgent_calls.clear()
            self._thread = None
        if on_thread:
            for job in jobs:
                close_steps(job.steps)
        else:
            # They must not be closed on another thread, nor freed there.
            self._unreachable_jobs += jobs
        for on_error in [job.on_error for job in jobs] + [failed for _, failed in calls]:
            _report_error(on_error, EngineError(message))


def close_steps(steps: Steps) -> None:
    """Close a piece of work that will not go on; on the thread that it belongs to."""
    try:
        steps.close()
    except BaseException:
        # Whatever it is, the others are still to be told.
        _log.exception("A piece of work could not be closed.")


def _report_error(on_error: OnError, error: BaseException) -> None:
    try:
        on_error(error)
    except BaseException:
        # The thread must go on for everybody else.
        _log.exception("The end of a piece of work could not be told.")
