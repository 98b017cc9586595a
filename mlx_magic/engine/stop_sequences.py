"""Stop sequences: found across the pieces of an answer, and never shown."""

from __future__ import annotations

from collections.abc import Sequence


class Stopped(Exception):  # noqa: N818 - a signal between our own layers, never shown to a person
    """Raised when a reported piece of text completes a stop sequence."""


class StopSequences:
    """Finds stop sequences in an answer that arrives in pieces.

    The result does not depend on how the answer is split: it ends before the stop sequence that
    is complete first (of two that are, before the one that starts first).

    Parameters
    ----------
    stop : sequence of str
        Non-empty texts.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._pending = ""
        self._stopped = False

    def feed(self, text: str) -> tuple[str, bool]:
        """Process the next piece.

        Returns
        -------
        text : str
            Text that can be shown: all but a possible start of a stop sequence.
        stopped : bool
            Whether a stop sequence is complete. Later pieces return an empty text.
        """
        if self._stopped or not self._stop:
            return ("", True) if self._stopped else (text, False)
        text_so_far = self._pending + text
        found = [(at + len(stop), at) for stop in self._stop if (at := text_so_far.find(stop)) >= 0]
        if found:
            self._pending, self._stopped = "", True
            return text_so_far[: min(found)[1]], True
        at = len(text_so_far) - self._partial_match(text_so_far)
        self._pending = text_so_far[at:]
        return text_so_far[:at], False

    def flush(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        pending, self._pending = self._pending, ""
        return pending

    def _partial_match(self, text: str) -> int:
        """Return the length of the longest suffix with which a stop sequence starts."""
        longest = max(len(stop) for stop in self._stop) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
