"""The thread that evicts models after their idle time-to-live."""

from __future__ import annotations

import threading
from collections.abc import Callable


class IdleTimer:
    """Calls `evict_due` at due times. The thread starts with the first `wake`.

    Parameters
    ----------
    evict_due : callable
        Evicts what is due, and returns the seconds until the next due time; None is never.
    threaded : bool
        False starts no thread, for tests.
    """

    def __init__(self, evict_due: Callable[[], float | None], *, threaded: bool = True) -> None:
        self._evict_due = evict_due
        self._threaded = threaded
        self._changed = threading.Condition()
        self._woken = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Call `evict_due` now, and again at the next due time."""
        with self._changed:
            self._woken = True
            if self._threaded and self._thread is None and not self._closed:
                # A daemon thread does not keep the process alive.
                self._thread = threading.Thread(
                    target=self._run, name="mlx-magic-idle", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                self._woken = False
            pause = self._evict_due()
            if pause is not None:  # longer waits raise OverflowError
                pause = min(pause, threading.TIMEOUT_MAX)
            with self._changed:
                self._changed.wait_for(lambda: self._woken or self._closed, pause)
