"""Callbacks without arguments that are called after every change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)

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
