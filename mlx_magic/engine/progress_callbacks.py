"""Progress callbacks of a task, called at most 20 times a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)

S = TypeVar("S")

INTERVAL = 0.05
"""Seconds between two calls of one observer."""


@dataclass(slots=True, eq=False)
class _Observer(Generic[S]):
    callback: Callable[[S], object]
    last: float = float("-inf")


class Observers(Generic[S]):
    """Calls observers one at a time, each with the newest snapshot.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Held during the calls, so that no observer gets an older snapshot after a newer one.
        # Never taken while the task's lock is held.
        self._lock = threading.RLock()
        self._observers: list[_Observer[S]] = []

    def add(self, callback: Callable[[S], object]) -> Callable[[], None]:
        """Add an observer.

        Parameters
        ----------
        callback : callable
            Called with a snapshot, on the thread that reports progress; must be quick. One that
            raises is logged and not called again.

        Returns
        -------
        callable
            Removes the observer.
        """
        observer = _Observer(callback)
        with self._lock:
            self._observers.append(observer)

        def remove() -> None:
            with self._lock:
                self._observers = [each for each in self._observers if each is not observer]

        return remove

    def notify(self, snapshot: Callable[[], S], *, at_end: bool = False) -> None:
        """Call the observers that are due; at the end, all of them.

        Parameters
        ----------
        snapshot : callable
            Returns the snapshot for the observers; safe from any thread. It is not kept: that of a
            task would hold the task, and with it the images, until the next garbage collection.
        at_end : bool
        """
        if not self._observers:
            return
        with self._lock:
            now = self._clock()
            for observer in list(self._observers):
                if at_end or now - observer.last >= INTERVAL:
                    observer.last = now
                    self._call(observer, snapshot)

    def _call(self, observer: _Observer[S], snapshot: Callable[[], S]) -> None:
        try:
            observer.callback(snapshot())
        except BaseException:
            # BaseException, since asyncio's CancelledError is not an Exception: a failing observer
            # must not end the task.
            _log.exception("An observer failed and is not called again.")
            self._observers = [each for each in self._observers if each is not observer]
