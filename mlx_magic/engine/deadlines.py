"""One thread that ends work whose time is up, wherever it is."""

from __future__ import annotations

import logging
import threading
from typing import Any

from mlx_magic.engine.task import Clock, Task

_log = logging.getLogger(__name__)


class Deadlines:
    """Ends work in time that nobody looks at: in a queue, in a download, on the disk.

    A `CancelToken` knows its own deadline, and whoever works looks at it. This thread
    is for what waits. There is none before the first deadline.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic; the one of the work.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: set[Task[Any]] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, task: Task[Any]) -> None:
        """Look after a piece of work; one without a deadline needs no looking after."""
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

    def look(self) -> None:
        """End what is overdue now."""
        with self._changed:
            tasks = [task for task in self._tasks if task.token.requested]
            self._tasks.difference_update(tasks)
        for task in tasks:
            try:
                task.expire()
            except BaseException:
                # Foreign code listens to its end; the others' time is up, too.
                _log.exception("A request whose time was up could not be ended.")

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
            self.look()

    def _pause(self) -> float | None:
        """Seconds until something is due; None is never. Under the lock."""
        due = [task.deadline for task in self._tasks if task.deadline is not None]
        return min(max(min(due) - self._clock(), 0.0), threading.TIMEOUT_MAX) if due else None
