"""Cancel tokens with an optional deadline. A cancelled task may still be running for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

Cause = Literal["cancelled", "timeout"]


class Cancelled(Exception):  # noqa: N818 - a signal between our own layers, never shown to a person
    """Raised at a cancellation point once a token was cancelled, whatever the cause."""


class CancelToken:
    """A one-way switch: any thread may set it, the working thread checks it.

    Parameters
    ----------
    deadline : float, optional
        Time of `clock` at which the token cancels itself, with the cause "timeout".
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
        """Request a stop. Further calls have no effect."""
        if not self.requested:
            self._request("cancelled", self._clock())

    @property
    def requested(self) -> bool:
        """Whether a stop was requested or the deadline has passed; work may still be running."""
        if self._event.is_set():
            return True
        if self._deadline is None or self._clock() < self._deadline:
            return False
        self._request("timeout", self._deadline)
        return True

    @property
    def cause(self) -> Cause | None:
        """The first cause of the stop, or None."""
        return self._cause

    @property
    def requested_at(self) -> float | None:
        """When the stop was requested, in seconds of the clock; None if it was not."""
        return self._requested_at

    def checkpoint(self) -> None:
        """Raise `Cancelled` if a stop was requested or the deadline has passed.

        Raises
        ------
        Cancelled
        """
        # Most tokens have no deadline, and this is called for each token of an answer.
        if self._event.is_set() or (self._deadline is not None and self.requested):
            raise Cancelled

    def wait(self, seconds: float) -> bool:
        """Wait for a stop request, at most `seconds`; return whether there is one."""
        if self._deadline is not None:
            seconds = min(seconds, max(self._deadline - self._clock(), 0.0))
        self._event.wait(seconds)
        return self.requested

    def _request(self, cause: Cause, at: float) -> None:
        with self._lock:
            if self._cause is None:
                self._cause, self._requested_at = cause, at
                self._event.set()
