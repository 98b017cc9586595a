"""The tasks of a session that have not ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from mlx_magic.cancellation import Cancelled
from mlx_magic.engine.change_listeners import ChangeListeners
from mlx_magic.engine.deadlines import Deadlines
from mlx_magic.engine.task import Clock, Task
from mlx_magic.errors import EngineError, MlxMagicError


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
