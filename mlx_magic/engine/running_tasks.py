"""The tasks of a session that have not ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from mlx_magic.engine.task import Task
from mlx_magic.errors import EngineError


class RunningTasks:
    """Generations, loads and unloads until their end; safe from any thread.

    Parameters
    ----------
    tell : callable
        Called, under no lock, when a task begins or has ended.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._tasks: dict[Future[Any], Task[Any]] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def tasks(self) -> list[Task[Any]]:
        """The tasks that have not ended."""
        with self._lock:
            return [task for future, task in self._tasks.items() if not future.done()]

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
        self._tell()

    def _ended(self, future: Future[Any]) -> None:
        # Not a closure over the task: a future keeps its callbacks, and task and future would then
        # hold each other, with the request's images, until the next garbage collection.
        with self._lock:
            self._tasks.pop(future, None)
        self._tell()

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
