"""Limits the updates of a live view by time and by bytes per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

INTERVAL = 0.07
"""Seconds between two updates. Less than the tick of the waiting cell, so that each tick may
send one (12 a second). Each update holds the GIL, which the model needs."""

HEAD_START = 20_000
BYTES_PER_TOKEN = 190
"""Bytes that updates may send: a head start for short answers, then so many per token.

1,000 tokens send at most 210 KB, and 4,000 at most four times that.
"""

MESSAGE_OVERHEAD = 900
"""Bytes of a widget message besides its value (measured: 750 to 850)."""


@dataclass(slots=True)
class Throttle:
    """Decides whether an update may be sent.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    head_start, bytes_per_token : int
        Bytes that updates may send; see `HEAD_START`.
    overhead : int
        Bytes of a message besides its value.
    """

    clock: Callable[[], float]
    head_start: int = HEAD_START
    bytes_per_token: int = BYTES_PER_TOKEN
    overhead: int = MESSAGE_OVERHEAD
    _last: float = float("-inf")
    _sent: int = 0

    def allows(self, size: int, tokens: int) -> bool:
        """Return whether an update of `size` bytes may be sent after `tokens` tokens."""
        if self.clock() - self._last < INTERVAL:
            return False
        allowed = self.head_start + self.bytes_per_token * tokens
        return self._sent + size + self.overhead <= allowed

    def sent(self, *sizes: int) -> None:
        """Record an update whose messages have these sizes, in bytes."""
        self._last = self.clock()
        self._sent += sum(size + self.overhead for size in sizes)
