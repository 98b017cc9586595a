"""The recent rate of a map, and the time that is left."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

_RECENT = 200
_LONGEST = 30.0
"""Seconds over which a rate is measured."""


class Speed:
    """Counts rows that were asked; thread-safe. Pauses do not count.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began: float | None = None
        self._paused_at: float | None = None
        self._pauses = 0.0
        self._times: deque[float] = deque(maxlen=_RECENT)

    def begin(self) -> None:
        """Start the clock."""
        self._began = self._clock()

    def pause(self) -> None:
        """Stop the clock."""
        with self._lock:
            self._paused_at = self._clock()

    def resume(self) -> None:
        """Let the clock go on."""
        with self._lock:
            if self._paused_at is not None:
                self._pauses += self._clock() - self._paused_at
                self._paused_at = None

    def count(self) -> None:
        """Count a row that was answered now."""
        with self._lock:
            self._times.append(self._now())

    @property
    def elapsed(self) -> float:
        """Seconds since the start, without pauses."""
        with self._lock:
            return self._now()

    @property
    def rate(self) -> float:
        """Rows per second, of late; 0 is unknown."""
        with self._lock:
            now = self._now()
            times = [time for time in self._times if now - time <= _LONGEST]
            if not times:
                return 0.0
            since = times[0] if len(times) > 1 else 0.0
            span = now - since
            return len(times) / span if span > 0 else 0.0

    def left(self, done: int, total: int | None) -> float | None:
        """Return the estimated seconds to the end; None is unknown."""
        rate = self.rate
        return None if total is None or not rate else (total - done) / rate

    def _now(self) -> float:
        if self._began is None:
            return 0.0
        end = self._clock() if self._paused_at is None else self._paused_at
        return end - self._began - self._pauses
