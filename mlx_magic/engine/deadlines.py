"""A thread that cancels tasks whose deadline has passed."""

from __future__ import annotations

import logging
import threading
from typing import Any

from mlx_magic.engine.task import Clock, Task

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
