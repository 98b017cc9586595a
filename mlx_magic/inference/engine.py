"""The one thread that MLX belongs to: a queue of work, done a slice at a time."""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TypeVar

from mlx_magic.errors import EngineError

_log = logging.getLogger(__name__)

T = TypeVar("T")
Steps = Generator[None, None, None]


class Engine:
    """Runs work in slices, one piece after the other, on one thread of its own.

    MLX's streams are thread-local and a lazy array fails on another thread:
    everything that loads, evaluates or frees arrays goes through here. A piece
    of work is a generator; every ``yield`` is a place where the engine may look
    at something else.

    Parameters
    ----------
    threaded : bool
        False leaves the thread out: tests call `step` by hand.
    at_end : callable, optional
        Called on the thread before it ends.
    """

    def __init__(self, *, threaded: bool = True, at_end: Callable[[], None] = lambda: None) -> None:
        self._threaded = threaded
        self._at_end = at_end
        self._soon: deque[Callable[[], None]] = deque()
        self._jobs: deque[tuple[Steps, Callable[[BaseException], None]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Pieces of work that have not ended, the running one included."""
        return len(self._jobs)

    def submit(self, steps: Steps, on_error: Callable[[BaseException], None]) -> None:
        """Queue a piece of work.

        Parameters
        ----------
        steps : generator
            The work; runs on the engine's thread.
        on_error : callable
            Called there with whatever `steps` raises.

        Raises
        ------
        EngineError
            When the engine is closed.
        """
        with self._changed:
            self._make_ready()
            self._jobs.append((steps, on_error))
            self._changed.notify()

    def call(self, function: Callable[[], T], *, soon: bool = False) -> Future[T]:
        """Run one function on the engine's thread.

        Parameters
        ----------
        function : callable
        soon : bool
            Between two slices of what is running, not after what is queued.

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
            self._make_ready()
            self._soon.append(run)
            self._changed.notify()
        return future

    def step(self) -> bool:
        """Do one slice of work.

        Returns
        -------
        bool
            Whether there was anything to do.
        """
        if self._soon:
            self._soon.popleft()()
            return True
        if not self._jobs:
            return False
        with self._changed:
            job = self._jobs.popleft()
        steps, on_error = job
        try:
            next(steps)
        except StopIteration:
            return True
        except BaseException as error:
            _tell(on_error, error)
            return True
        # To the end of the round: everybody's next slice comes before its own.
        with self._changed:
            self._jobs.append(job)
        return True

    def close(self, timeout: float = 5.0) -> None:
        """Take no more work, let go of what is queued, and end the thread.

        Parameters
        ----------
        timeout : float
            Seconds to wait for the slice that is running.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is None:
            self._drop_all()
        elif self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _drop_all(self) -> None:
        closed = EngineError("The kernel is shutting down: this request was dropped.")
        while self._jobs:
            steps, on_error = self._jobs.popleft()
            steps.close()
            _tell(on_error, closed)

    def _make_ready(self) -> None:
        """Start the thread if need be; under the lock."""
        if self._closed:
            raise EngineError("The inference thread is closed: restart the kernel.")
        if self._thread is not None and not self._thread.is_alive():
            # Also so in a forked child, which has the object but not the thread.
            raise EngineError("The inference thread has died: restart the kernel.")
        if self._threaded and self._thread is None:
            self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="mlx-magic", daemon=True)
        self._thread.start()
        # A daemon thread inside MLX while the interpreter goes down can crash it.
        atexit.register(self.close)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._soon and not self._closed:
                    self._changed.wait()
                if self._closed:
                    break
            self.step()
        while self._soon:
            self._soon.popleft()()
        self._drop_all()
        self._at_end()


def _tell(on_error: Callable[[BaseException], None], error: BaseException) -> None:
    try:
        on_error(error)
    except Exception:
        # The thread must go on for everybody else.
        _log.exception("The end of a piece of work could not be told.")
