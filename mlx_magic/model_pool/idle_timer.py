"""The thread that looks, now and then, whether a model was idle for too long."""

from __future__ import annotations

import threading
from collections.abc import Callable


class IdleTimer:
    """Calls `look` when something is due. There is no thread before the first `wake`.

    Parameters
    ----------
    look : callable
        Does what is due, and returns the seconds until the next; None is never.
    threaded : bool
        False leaves the thread out: tests look by hand.
    """

    def __init__(self, look: Callable[[], float | None], *, threaded: bool = True) -> None:
        self._look = look
        self._threaded = threaded
        self._changed = threading.Condition()
        self._woken = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Look now, and again when something is due."""
        with self._changed:
            self._woken = True
            if self._threaded and self._thread is None and not self._closed:
                # A daemon: it must not keep the process alive.
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
            pause = self._look()
            if pause is not None:  # a longer wait is an OverflowError
                pause = min(pause, threading.TIMEOUT_MAX)
            with self._changed:
                self._changed.wait_for(lambda: self._woken or self._closed, pause)
