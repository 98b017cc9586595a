"""The recent rate of a download, and the estimated time left."""

from __future__ import annotations

import math
from collections import deque

WINDOW = 10.0
"""Length of the sliding window, in seconds."""

FEWEST = 4
"""Minimum number of reports that are kept: a slow connection has few within the window."""

SHORTEST = 0.5
"""Minimum time span of a rate, in seconds: over a shorter one it fluctuates."""


class DownloadRate:
    """Bytes per second over a sliding window. Not thread-safe: the caller holds a lock.

    Times are seconds of the caller's clock.
    """

    def __init__(self) -> None:
        self._reports: deque[tuple[float, int]] = deque()
        self._total = 0

    def report(self, now: float, done: int, total: int) -> None:
        """Record the progress.

        Parameters
        ----------
        now : float
            Seconds.
        done, total : int
            Bytes. A different total, or fewer bytes than before, restarts the measurement, since
            `done` then includes bytes that were on the disk before.
        """
        if total != self._total or (self._reports and done < self._reports[-1][1]):
            self._reports.clear()
        self._total = total
        self._reports.append((now, done))
        # The last report before the window is kept: it is the start of the measurement.
        while len(self._reports) > FEWEST and self._reports[1][0] <= now - WINDOW:
            self._reports.popleft()

    def rate(self, now: float) -> float:
        """Return bytes per second up to `now`, which falls while none arrive; 0 is unknown."""
        if not self._reports:
            return 0.0
        (since, first), (_, last) = self._reports[0], self._reports[-1]
        return (last - first) / (now - since) if now - since >= SHORTEST else 0.0


def seconds_left(done: int, total: int, rate: float) -> float | None:
    """Return the seconds that the rest takes at this rate; None if unknown.

    Parameters
    ----------
    done, total : int
        Bytes.
    rate : float
        Bytes per second.
    """
    return max(total - done, 0) / rate if rate > 0 and total > 0 else None


def duration(seconds: float) -> str:
    """Return a duration as text: ``40 s``, ``3 min``, ``2 h 10 min``.

    It is rounded up, so that it is never zero.
    """
    if seconds < 60:
        # In steps of ten seconds above ten: a number that changes every second flickers.
        return f"{max(math.ceil(seconds), 1) if seconds <= 10 else 10 * math.ceil(seconds / 10)} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else "more than a day"
