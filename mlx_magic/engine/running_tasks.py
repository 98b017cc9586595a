"""The tasks of a session that have not ended: their deadlines, and listeners of every change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from mlx_magic.cancellation import Cancelled
from mlx_magic.engine.task import Clock, Task
from mlx_magic.errors import EngineError, MlxMagicError

Callback = Callable[[], None]


class ChangeListeners:
    """Callbacks for changes.

    `tell` must be called without holding a lock: a callback may access any object, on any
    thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced, never mutated: `tell` takes no lock.
        self._callbacks: dict[object, Callback] = {}

    def add(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` at every change from now on.

        Parameters
        ----------
        callback : callable
            Must be quick. One that raises is logged, and not called again.

        Returns
        -------
        callable
            Removes the callback; may be called more than once. A call that another thread has
            begun may still be running afterwards.
        """
        key = object()
        with self._lock:
            self._callbacks = {**self._callbacks, key: callback}
        return lambda: self._remove(key)

    def notify(self) -> None:
        """Call every callback; called from any thread, under no lock."""
        for key, callback in self._callbacks.items():
            # Skip a callback that an earlier one has just removed.
            if key not in self._callbacks:
                continue
            try:
                callback()
            except Exception:
                _log.exception("A listener failed and is not called again.")
                self._remove(key)

    def _remove(self, key: object) -> None:
        with self._lock:
            self._callbacks = {k: v for k, v in self._callbacks.items() if k is not key}


_log = logging.getLogger(__name__)


class Deadlines:
    """Cancels tasks that wait (in a queue, for a download, for the disk) at their deadline.

    A working thread checks the deadline of its `CancelToken` itself; this thread is for tasks
    that wait. It starts with the first deadline.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic; the clock of the tasks.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: set[Task[Any]] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, task: Task[Any]) -> None:
        """Add a task. A task without a deadline is ignored."""
        if task.deadline is None:
            return
        with self._changed:
            self._tasks.add(task)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._run, name="mlx-magic-deadlines", daemon=True
                )
                self._thread.start()
            self._changed.notify()
        task.future.add_done_callback(lambda _: self._drop(task))

    def cancel_overdue(self) -> None:
        """Cancel all tasks whose deadline has passed."""
        with self._changed:
            tasks = [task for task in self._tasks if task.token.requested]
            self._tasks.difference_update(tasks)
        for task in tasks:
            try:
                task.expire()
            except BaseException:
                # A foreign callback failed. The other tasks must still be cancelled.
                _log.exception("A request whose timeout has passed could not be ended.")

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _drop(self, task: Task[Any]) -> None:
        with self._changed:
            self._tasks.discard(task)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (pause := self._pause()) != 0:
                    self._changed.wait(pause)
                if self._closed:
                    return
            self.cancel_overdue()

    def _pause(self) -> float | None:
        """Return the seconds until the next deadline, or None; called under the lock."""
        due = [task.deadline for task in self._tasks if task.deadline is not None]
        return min(max(min(due) - self._clock(), 0.0), threading.TIMEOUT_MAX) if due else None


class RunningTasks:
    """Generations, loads and unloads until their end; safe from any thread.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic; the clock of the tasks.

    Attributes
    ----------
    deadlines : Deadlines
        Ends tasks whose deadline has passed.
    """

    def __init__(self, clock: Clock) -> None:
        self.deadlines = Deadlines(clock)
        self._listeners = ChangeListeners()
        self._tasks: dict[Future[Any], Task[Any]] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def tasks(self) -> list[Task[Any]]:
        """The tasks that have not ended."""
        with self._lock:
            return [task for future, task in self._tasks.items() if not future.done()]

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback`, under no lock, when a task begins or has ended.

        Returns a callable that removes the callback.
        """
        return self._listeners.add(callback)

    def begin(
        self,
        task: Task[Any],
        prepare: Callable[[], None],
        *,
        failure: Callable[[Exception], MlxMagicError],
    ) -> None:
        """Add a task, and prepare it on a thread of its own.

        Opening images, fetching and downloading must not block the kernel's event loop, the
        inference thread or each other. The thread is a daemon: those of a thread pool would
        delay the exit of the process.

        Parameters
        ----------
        task : Task
        prepare : callable
            Submits the task to the engine at its end.
        failure : callable
            Makes the error to report of an unexpected one.

        Raises
        ------
        EngineError
            When the session is closed.
        """

        def run() -> None:
            try:
                task.token.checkpoint()
                prepare()
            except Cancelled:
                task.stopped()
            except (MlxMagicError, MemoryError) as error:
                task.fail(error)
            except Exception as error:
                reported = failure(error)
                reported.__cause__ = error
                task.fail(reported)
            except BaseException as error:
                task.fail(error)

        self.add(task)
        self.deadlines.add(task)
        try:
            threading.Thread(target=run, name="mlx-magic-prepare", daemon=True).start()
        except RuntimeError as error:
            task.fail(EngineError(f"No thread could be started ({error}): end some processes."))

    def add(self, task: Task[Any]) -> None:
        """Add a task, and remove it when it ends.

        Raises
        ------
        EngineError
            When the session is closed.
        """
        with self._lock:
            if self._closed:
                raise EngineError("This session is closed: restart the kernel.")
            self._tasks[task.future] = task
        task.future.add_done_callback(self._ended)
        self._listeners.notify()

    def _ended(self, future: Future[Any]) -> None:
        # Not a closure over the task: a future keeps its callbacks, and task and future would then
        # hold each other, with the request's images, until the next garbage collection.
        with self._lock:
            self._tasks.pop(future, None)
        self._listeners.notify()

    def cancel(self) -> int:
        """Cancel all tasks; return their number."""
        tasks = self.tasks
        for task in tasks:
            task.cancel()
        return len(tasks)

    def close(self) -> None:
        """Refuse new tasks, and cancel the present ones."""
        with self._lock:
            self._closed = True
        self.cancel()
        self.deadlines.close()
