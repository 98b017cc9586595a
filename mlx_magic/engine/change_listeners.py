"""Telling whoever looks that something began, ended or changed: not what, only that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)

Callback = Callable[[], None]


class ChangeListeners:
    """Callbacks that are told of every change.

    The one who changes calls `tell` when its own locks are free again: a callback
    may look at anything, and on any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced, never changed: telling takes no lock.
        self._callbacks: dict[object, Callback] = {}

    def add(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` at every change from now on.

        Parameters
        ----------
        callback : callable
            Must be quick. One that raises is logged, and called no more.

        Returns
        -------
        callable
            Ends it; more than once does no harm. A call that another thread has
            begun may still be under way then.
        """
        key = object()
        with self._lock:
            self._callbacks = {**self._callbacks, key: callback}
        return lambda: self._remove(key)

    def tell(self) -> None:
        """Call every callback; from any thread, under no lock."""
        for key, callback in self._callbacks.items():
            # One that an earlier callback has just removed is not called.
            if key not in self._callbacks:
                continue
            try:
                callback()
            except Exception:
                _log.exception("A watcher failed and is told nothing more.")
                self._remove(key)

    def _remove(self, key: object) -> None:
        with self._lock:
            self._callbacks = {k: v for k, v in self._callbacks.items() if k is not key}
