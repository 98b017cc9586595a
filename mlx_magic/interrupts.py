"""An interrupt (Ctrl-C, the kernel's interrupt) is noted, and raised where nothing is lost by it.

Python raises KeyboardInterrupt between any two steps of the main thread: between the start of a
generation and the line that would have held it, say, or in the middle of building a view.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

MOST = 3
"""From so many interrupts on, each is raised at once: what should have ended has not."""


class Interrupt:
    """Whether the work of a guarded stretch was interrupted."""

    def __init__(self) -> None:
        self._count = 0
        self._callback: Callable[[], None] = lambda: None

    @property
    def came(self) -> bool:
        """Whether there was an interrupt."""
        return self._count > 0

    @property
    def repeated(self) -> bool:
        """Whether there were several: nothing more is to be waited for."""
        return self._count > 1

    def note(self) -> None:
        """Take an interrupt in."""
        self._count += 1
        self._callback()

    @contextmanager
    def notifying(self, callback: Callable[[], None]) -> Iterator[None]:
        """Let `callback` hear of each interrupt, inside a signal handler."""
        before, self._callback = self._callback, callback
        try:
            yield
        finally:
            self._callback = before


@contextmanager
def deferred() -> Generator[Interrupt, None, None]:
    """Guard a stretch of code that begins work: an interrupt in it is raised at its end.

    The code looks at the `Interrupt` while it waits. Signals reach the main thread only; on others,
    and where SIGINT is ignored, this does nothing.

    Raises
    ------
    KeyboardInterrupt
        At the end, if there was an interrupt.
    """
    interrupt = Interrupt()
    on_main = threading.current_thread() is threading.main_thread()
    before: Any = signal.getsignal(signal.SIGINT) if on_main else None

    def on_sigint(number: int, frame: FrameType | None) -> None:
        interrupt.note()
        if interrupt._count >= MOST:
            raise KeyboardInterrupt

    # Last of what comes before the guarded code, and first of what comes after it.
    if callable(before):
        signal.signal(signal.SIGINT, on_sigint)
    try:
        yield interrupt
    except asyncio.CancelledError:
        # What ipykernel makes of an interrupt in a cell that awaits.
        interrupt.note()
        raise KeyboardInterrupt from None
    except Exception:
        if interrupt.came:
            raise KeyboardInterrupt from None
        raise
    finally:
        if callable(before):
            signal.signal(signal.SIGINT, before)
    if interrupt.came:
        raise KeyboardInterrupt
