"""Whoever wants to know how far a piece of work is, told at most 20 times a second."""

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
    """Calls observers one after the other, never two at once, and each with what is newest.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    snapshot : callable
        Returns what observers get; safe from any thread.
    """

    def __init__(self, clock: Callable[[], float], snapshot: Callable[[], S]) -> None:
        self._clock = clock
        self._snapshot = snapshot
        # Held while they are called, so that nobody gets an older snapshot after a newer one;
        # never taken by who holds the work's own lock.
        self._lock = threading.RLock()
        self._observers: list[_Observer[S]] = []

    def add(self, callback: Callable[[S], object]) -> Callable[[], None]:
        """Call someone from now on.

        Parameters
        ----------
        callback : callable
            Takes a snapshot, on whatever thread the work goes on; must be quick. One that
            raises is logged and not called again.

        Returns
        -------
        callable
            Ends it.
        """
        observer = _Observer(callback)
        with self._lock:
            self._observers.append(observer)

        def remove() -> None:
            with self._lock:
                self._observers = [each for each in self._observers if each is not observer]

        return remove

    def tell(self, *, at_end: bool = False) -> None:
        """Call those whose turn has come; all of them where it is the end."""
        if not self._observers:
            return
        with self._lock:
            now = self._clock()
            for observer in list(self._observers):
                if at_end or now - observer.last >= INTERVAL:
                    observer.last = now
                    self._call(observer)

    def _call(self, observer: _Observer[S]) -> None:
        try:
            observer.callback(self._snapshot())
        except BaseException:
            # Whatever it is (asyncio's CancelledError is no Exception): the work is not to
            # be lost for who looks on.
            _log.exception("An observer failed and is told nothing more.")
            self._observers = [each for each in self._observers if each is not observer]
