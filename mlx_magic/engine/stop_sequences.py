"""Texts that end an answer: found across the pieces it comes in, and never shown."""

from __future__ import annotations

from collections.abc import Sequence


class Stopped(Exception):  # noqa: N818 - a signal between our own layers, never shown to a person
    """Raised where a piece of text was reported that completes a stop text."""


class StopSequences:
    """Looks for stop texts in an answer that comes in pieces.

    What it lets through does not depend on how the answer is cut: it ends before the
    stop text that is complete first (of two, before the one that began first).

    Parameters
    ----------
    stop : sequence of str
        None of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self._stopped = False

    def feed(self, text: str) -> tuple[str, bool]:
        """Take the next piece.

        Returns
        -------
        text : str
            What can be shown: all but what may be the beginning of a stop text.
        stopped : bool
            Whether a stop text is complete. Nothing more is let through then.
        """
        if self._stopped or not self._stop:
            return ("", True) if self._stopped else (text, False)
        whole = self._held + text
        found = [(at + len(stop), at) for stop in self._stop if (at := whole.find(stop)) >= 0]
        if found:
            self._held, self._stopped = "", True
            return whole[: min(found)[1]], True
        at = len(whole) - self._partial_match(whole)
        self._held = whole[at:]
        return whole[:at], False

    def flush(self) -> str:
        """Return what was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held

    def _partial_match(self, text: str) -> int:
        """Count the characters at the end that a stop text may begin with."""
        longest = max(len(stop) for stop in self._stop) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
