"""Asking work to stop, or giving it a time. That it was asked is not yet that it has stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

Cause = Literal["cancelled", "timeout"]


class Cancelled(Exception):  # noqa: N818 - a signal between our own layers, never shown to a person
    """Raised at a cancellation point once a token was cancelled, whatever the cause."""


class CancelToken:
    """A one-way switch that any thread may throw and the working thread looks at.

    Parameters
    ----------
    deadline : float, optional
        Throws itself at this time of `clock`.
    clock : callable
        Seconds, monotonic.
    """

    __slots__ = ("_cause", "_clock", "_deadline", "_event", "_lock", "_requested_at")

    def __init__(
        self, *, deadline: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._clock = clock
        self._deadline = deadline
        self._cause: Cause | None = None
        self._requested_at: float | None = None

    def cancel(self) -> None:
        """Ask for the work to stop. Asking twice is the same as once."""
        if not self.requested:
            self._request("cancelled", self._clock())

    @property
    def requested(self) -> bool:
        """Whether somebody asked or the time is up; the work may still be running."""
        if self._event.is_set():
            return True
        if self._deadline is None or self._clock() < self._deadline:
            return False
        self._request("timeout", self._deadline)
        return True

    @property
    def cause(self) -> Cause | None:
        """Why the work is to stop, the first cause if there were several."""
        return self._cause

    @property
    def requested_at(self) -> float | None:
        """When it was asked to, in seconds of the clock."""
        return self._requested_at

    def checkpoint(self) -> None:
        """Stop here if somebody asked or the time is up.

        Raises
        ------
        Cancelled
        """
        if self.requested:
            raise Cancelled

    def wait(self, seconds: float) -> bool:
        """Wait until the work is to stop, at most so long; return whether it is."""
        if self._deadline is not None:
            seconds = min(seconds, max(self._deadline - self._clock(), 0.0))
        self._event.wait(seconds)
        return self.requested

    def _request(self, cause: Cause, at: float) -> None:
        with self._lock:
            if self._cause is None:
                self._cause, self._requested_at = cause, at
                self._event.set()
