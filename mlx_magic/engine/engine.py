"""Round-robin scheduler of generators on the one MLX thread."""

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
    """A value that a job may yield."""

    WAIT = "wait"
    """The job has nothing to do in this round."""


WAIT = StepSignal.WAIT
Steps = Generator[StepSignal | None, None, None]

PAUSE = 0.005
"""Seconds that the thread sleeps after a round in which every job yielded `WAIT`."""

FORKED = (
    "This process was forked from one with an inference thread, which a fork does not copy: "
    "start it with 'spawn'."
)
PRIORITY = 8
"""Slices of urgent jobs, for one of a job that is not. The others must go on, too: an urgent job
may wait for the memory that they hold."""

IDLE = 2.0
"""Seconds without jobs after which `tidy` is called."""

BUSY = 30.0
"""Seconds between two calls of `tidy` while there are jobs."""

_CLOSING = "The kernel is shutting down: this request was dropped."
_DIED = (
    "The inference thread died{}: its requests ended, and its models are unloaded. "
    "Ask again: a new thread reloads them."
)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    steps: Steps
    on_error: OnError
    urgent: Callable[[], bool] | None = None


class Engine:
    """Runs jobs round-robin on one thread.

    MLX's streams are thread-local, and a lazy array fails on another thread: everything that
    loads, evaluates or frees arrays runs here. A job is a generator; a slice is the code up to
    its next ``yield``. After each slice all other jobs get one, so that no job waits for the end
    of another's load or answer. A job that yields `WAIT` had nothing to do; after a round in
    which all did, the thread sleeps for `PAUSE`, or until there is a new job.

    An ``Exception`` ends its own job. Any other exception (such as ``SystemExit`` from foreign
    code) ends the thread: all its jobs fail with an `EngineError`, and the next job starts a new
    thread. See `when_lost`.

    Parameters
    ----------
    threaded : bool
        False starts no thread: tests call `step`.
    at_end : callable, optional
        Called on a thread before it ends.
    settle : callable, optional
        Called on the thread before it pauses: waits for MLX's background work.
    tidy : callable, optional
        Called on the thread after `IDLE` seconds without jobs, and every `BUSY` seconds while
        there are jobs.
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
        self._slices_first = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False
        self._when_lost: list[Callable[[], None]] = []
        self._unreachable_jobs: list[_Job] = []

    @property
    def threaded(self) -> bool:
        """Whether the engine has a thread; otherwise tests call `step`."""
        return self._threaded

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Add a callback for the death of the thread, called before any job is failed.

        Arrays of a dead thread cannot be used on the next one: `callback` must drop them. It
        must be quick, and may be called on any thread.
        """
        self._when_lost.append(callback)

    def submit(
        self, steps: Steps, on_error: OnError, *, urgent: Callable[[], bool] | None = None
    ) -> None:
        """Add a job to the round.

        Parameters
        ----------
        steps : generator
            The job; runs on the engine's thread.
        on_error : callable
            Called on that thread with the exception of `steps`, or with an `EngineError`.
        urgent : callable, optional
            Whether the job has priority now: then it gets `PRIORITY` slices for one of those that
            have none. Without it, a job never has priority.

        Raises
        ------
        EngineError
            When the engine is closed.
        """
        with self._changed:
            self._ensure_thread()
            self._jobs.append(_Job(steps, on_error, urgent))
            self._idle = 0
            self._changed.notify()

    def prioritize(self, steps: Steps) -> None:
        """Give a job the next slice; safe from any thread.

        For a job that was cancelled: it need not wait for a round of all others.
        """
        with self._changed:
            # The first job may be running, and keeps its place.
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
            Whether it runs after the current slice, before all jobs.

        Returns
        -------
        concurrent.futures.Future
            Gets the function's value or exception.
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

    def pause(self, seconds: float) -> bool:
        """Pause the thread between two slices, until `resume`; callable from any thread.

        While it is paused, MLX does no background work and the caller holds the engine's lock,
        so that the process can be forked.

        Parameters
        ----------
        seconds : float
            Longest wait.

        Returns
        -------
        bool
            Whether the thread is paused.
        """
        self._changed.acquire()
        self._rests += 1
        if self._thread is threading.current_thread():
            self._settle()
            return True
        self._changed.notify_all()
        return self._changed.wait_for(lambda: self._resting or self._thread is None, seconds)

    def resume(self) -> None:
        """Resume the thread; called on the thread that called `rest`."""
        self._rests -= 1
        self._changed.notify_all()
        self._changed.release()

    def step(self) -> bool:
        """Run one slice of the next job.

        Returns
        -------
        bool
            Whether there was a job.
        """
        if self._urgent_calls:
            self._urgent_calls.popleft()[0]()
            return True
        if not self._jobs:
            return False
        self._put_urgent_first()
        # The job stays in the queue during its slice, so that `_end_all` finds it.
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
                    self._jobs.append(job)
            self._idle = self._idle + 1 if waits else 0
        return True

    def _put_urgent_first(self) -> None:
        """Let an urgent job be the next one, unless it is the turn of the others."""
        with self._changed:
            if all(job.urgent is not None for job in self._jobs):
                return  # all are alike
            at = next(
                (
                    at
                    for at, job in enumerate(self._jobs)
                    if job.urgent is not None and job.urgent()
                ),
                None,
            )
            if at is None or self._slices_first >= PRIORITY:
                self._slices_first = 0
                return
            self._slices_first += 1
            job = self._jobs[at]
            del self._jobs[at]
            self._jobs.appendleft(job)

    def close(self, timeout: float = 5.0) -> None:
        """Refuse new jobs, drop the present ones, and end the thread.

        Parameters
        ----------
        timeout : float
            Seconds to wait for the running slice.
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
        """Start the thread if there is none; called under the lock."""
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
        # A daemon thread inside MLX can crash the interpreter at shutdown.
        atexit.unregister(self.close)
        atexit.register(self.close)
        forks.guard(self)

    def _run(self) -> None:
        try:
            self._serve()
            message = _CLOSING
        except BaseException as error:
            # The traceback's frames hold arrays: only the text is kept.
            message = _DIED.format(f" ({type(error).__name__}: {one_line(error)})")
            self._call_lost_callbacks(message)
        self._end_all(message)
        self._at_end()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (has_work := self._has_work):
                    if not self._changed.wait(IDLE if self._untidy else None):
                        has_work = self._has_work
                        break
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
        """Whether the thread has something to do; called under the lock."""
        return bool(self._jobs or self._urgent_calls or self._closed or self._rests)

    def _tidy_up(self) -> None:
        self._untidy = False
        self._tidy()
        self._tidied = self._clock()

    def _rest_until_released(self) -> None:
        """Pause until all calls of `rest` are released; called under the lock."""
        self._settle()
        self._resting = True
        self._changed.notify_all()
        self._changed.wait_for(lambda: not self._rests)
        self._resting = False

    def _guard(self, thread: threading.Thread) -> None:
        """Wait for the end of the thread, in case it dies without running its handlers."""
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
                _log.exception("A callback for the death of the inference thread failed.")

    def _end_all(self, message: str, *, on_thread: bool = True) -> None:
        """Fail all jobs with `message`; the next job starts a new thread."""
        with self._changed:
            jobs, calls = list(self._jobs), list(self._urgent_calls)
            self._jobs.clear()
            self._urgent_calls.clear()
            self._thread = None
        if on_thread:
            for job in jobs:
                close_steps(job.steps)
        else:
            # Kept: they must be neither closed nor freed on another thread.
            self._unreachable_jobs += jobs
        for on_error in [job.on_error for job in jobs] + [failed for _, failed in calls]:
            _report_error(on_error, EngineError(message))


def close_steps(steps: Steps) -> None:
    """Close a job that will not continue; called on the engine's thread."""
    try:
        steps.close()
    except BaseException:
        # The errors of the other jobs still have to be reported.
        _log.exception("A job could not be closed.")


def _report_error(on_error: OnError, error: BaseException) -> None:
    try:
        on_error(error)
    except BaseException:
        # The thread must continue with the other jobs.
        _log.exception("The error of a job could not be reported.")
