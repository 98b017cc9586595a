"""The work of a session that has no outcome yet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mlx_magic.engine.task import Task
from mlx_magic.errors import EngineError


class RunningTasks:
    """Generations, loads and unloads until they have their outcome; from any thread.

    Parameters
    ----------
    tell : callable
        Called, under no lock, when one begins or has ended.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._works: set[Task[Any]] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def works(self) -> list[Task[Any]]:
        """What has no outcome yet."""
        with self._lock:
            return [work for work in self._works if not work.future.done()]

    def add(self, work: Task[Any]) -> None:
        """Follow a piece of work to its end.

        Raises
        ------
        EngineError
            When the session is closed.
        """
        with self._lock:
            if self._closed:
                raise EngineError("This session is closed: restart the kernel.")
            self._works.add(work)

        def ended(_: object) -> None:
            with self._lock:
                self._works.discard(work)
            self._tell()

        work.future.add_done_callback(ended)
        self._tell()

    def cancel(self) -> int:
        """Cancel everything; return how much that was."""
        works = self.works
        for work in works:
            work.cancel()
        return len(works)

    def close(self) -> None:
        """Take no more, and cancel what there is."""
        with self._lock:
            self._closed = True
        self.cancel()
