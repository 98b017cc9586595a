"""A thread that keeps a panel up to date while something happens, and is gone when nothing does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from mlx_magic.notebook.display import throttle
from mlx_magic.notebook.kernel import click_routing

INTERVAL = throttle.INTERVAL + 0.003
"""Seconds between two updates: about 12 a second.

Just more than the throttle lets pass: with less, every other update would send nothing.
"""

FAILURES = 3
"""Updates that fail in a row, after which a panel stands still until something new happens."""

_log = logging.getLogger(__name__)


class Updates:
    """Calls `update` until it says that nothing is left to do; see `wake`.

    Parameters
    ----------
    update : callable
        Brings the view up to date; returns whether it wants to be called again.
    interval : float
        Seconds between two calls, unless woken.
    """

    def __init__(self, update: Callable[[], bool], *, interval: float = INTERVAL) -> None:
        self._update = update
        self._interval = interval
        self._lock = threading.Lock()
        self._requested = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._context = click_routing.thread_context()

    def wake(self) -> None:
        """Ask for an update soon; safe from any thread, and quick."""
        with self._lock:
            if self._closed:
                return
            self._requested.set()
            if self._thread is None:
                # A copy: the thread before this one may not quite have left its own.
                run = self._context.copy().run
                self._thread = threading.Thread(
                    target=run, args=(self._run,), name="mlx-magic-panel", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Update no more."""
        with self._lock:
            self._closed = True
            self._requested.set()

    @property
    def active(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None

    def _run(self) -> None:
        failed = 0
        while True:
            self._requested.clear()
            try:
                call_again = not self._closed and self._update()
                failed = 0
            except Exception:
                # What fails for a moment must not leave a growing answer standing still.
                _log.exception("A panel could not be brought up to date.")
                failed += 1
                call_again = failed < FAILURES
            if not call_again:
                with self._lock:
                    # What was asked for meanwhile would be lost with the thread.
                    if self._closed or not self._requested.is_set():
                        self._thread = None
                        return
            # Several things that happen at once are one update.
            self._requested.wait(self._interval)
