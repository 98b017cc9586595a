"""Asking work to stop. That it was asked is not yet that it has stopped."""

from __future__ import annotations

import threading


class Cancelled(Exception):  # noqa: N818 - a signal between our own layers, never shown to a person
    """Raised at a cancellation point once a token was cancelled."""


class CancelToken:
    """A one-way switch that any thread may throw and the working thread looks at."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask for the work to stop. Asking twice is the same as once."""
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether somebody asked; the work may still be running."""
        return self._event.is_set()

    def checkpoint(self) -> None:
        """Stop here if somebody asked.

        Raises
        ------
        Cancelled
        """
        if self._event.is_set():
            raise Cancelled

    def wait(self, seconds: float) -> bool:
        """Wait until somebody asks, at most so long; return whether somebody did."""
        return self._event.wait(seconds)
