"""How often a live view may be updated: by time, and by bytes for the tokens there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

INTERVAL = 0.07
"""Seconds between two updates, less than between two ticks of the waiting cell: each
tick may send one, twelve a second. Every update takes Python's lock from the model."""

HEAD_START = 20_000
BYTES_PER_TOKEN = 190
"""Bytes that updates may take: a head start for short answers, then so many a token.

1,000 tokens then take at most 210 KB, and 4,000 no more than four times that.
"""

MESSAGE_OVERHEAD = 900
"""Bytes of a widget message around the value that it carries (measured: 750 to 850)."""


@dataclass(slots=True)
class Throttle:
    """Says when the next update may be sent.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    head_start, bytes_a_token : int
        The bytes that updates may take.
    overhead : int
        Bytes of a message around its value.
    """

    clock: Callable[[], float]
    head_start: int = HEAD_START
    bytes_per_token: int = BYTES_PER_TOKEN
    overhead: int = MESSAGE_OVERHEAD
    _last: float = float("-inf")
    _sent: int = 0

    def allows(self, size: int, tokens: int) -> bool:
        """Whether an update of `size` bytes may go out now, `tokens` having been written."""
        if self.clock() - self._last < INTERVAL:
            return False
        allowed = self.head_start + self.bytes_per_token * tokens
        return self._sent + size + self.overhead <= allowed

    def sent(self, *sizes: int) -> None:
        """Take note of an update made of messages with so many bytes each."""
        self._last = self.clock()
        self._sent += sum(size + self.overhead for size in sizes)
