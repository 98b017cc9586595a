"""How fast bytes arrive, over the last seconds, and how long the rest will take."""

from __future__ import annotations

import math
from collections import deque

WINDOW = 10.0
"""Seconds that count."""

FEWEST = 4
"""Reports that count however old they are: on a slow line few come within the window."""

SHORTEST = 0.5
"""Seconds before there is a speed: one that is measured over less jumps about."""


class DownloadRate:
    """A speed over a sliding window; the caller sees to it that one thread uses it at a time.

    Seconds are those of the caller's clock.
    """

    def __init__(self) -> None:
        self._reports: deque[tuple[float, int]] = deque()
        self._total = 0

    def report(self, now: float, done: int, total: int) -> None:
        """Take in where it stands.

        Parameters
        ----------
        now : float
            Seconds.
        done, total : int
            Bytes. Another total, or fewer bytes than before, begins the measurement anew: what
            was there already did not arrive.
        """
        if total != self._total or (self._reports and done < self._reports[-1][1]):
            self._reports.clear()
        self._total = total
        self._reports.append((now, done))
        # The one before the window's first belongs to it: it says where the window began.
        while len(self._reports) > FEWEST and self._reports[1][0] <= now - WINDOW:
            self._reports.popleft()

    def rate(self, now: float) -> float:
        """Return bytes per second up to now, so that it falls while nothing comes; 0 is unknown."""
        if not self._reports:
            return 0.0
        (since, first), (_, last) = self._reports[0], self._reports[-1]
        return (last - first) / (now - since) if now - since >= SHORTEST else 0.0


def seconds_left(done: int, total: int, rate: float) -> float | None:
    """Return how long the rest will take at this speed; None where nobody can say.

    Parameters
    ----------
    done, total : int
        Bytes.
    rate : float
        Bytes per second.
    """
    return max(total - done, 0) / rate if rate > 0 and total > 0 else None


def duration(seconds: float) -> str:
    """Return a length of time for a person: ``40 s``, ``3 min``, ``2 h 10 min``.

    Rounded up to what a person can use, so that it never says that nothing is left.
    """
    if seconds < 60:
        # By tens while there are several: each second another number would flicker.
        return f"{max(math.ceil(seconds), 1) if seconds <= 10 else 10 * math.ceil(seconds / 10)} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else "more than a day"
