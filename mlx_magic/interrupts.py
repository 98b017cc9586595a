"""Defers KeyboardInterrupt (Ctrl-C, the kernel's interrupt) to a point where nothing is lost.

Python raises KeyboardInterrupt between any two bytecodes of the main thread: for example between
the start of a generation and the assignment that keeps it, or while a view is being built.
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
"""From this many interrupts on, each is raised immediately: the guarded code did not end."""


class Interrupt:
    """Records interrupts during a guarded block."""

    def __init__(self) -> None:
        self._count = 0
        self._callback: Callable[[], None] = lambda: None

    @property
    def came(self) -> bool:
        """Whether there was an interrupt."""
        return self._count > 0

    @property
    def repeated(self) -> bool:
        """Whether there were several: then the guarded code should stop waiting."""
        return self._count > 1

    def note(self) -> None:
        """Record an interrupt."""
        self._count += 1
        self._callback()

    @contextmanager
    def notifying(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` at each interrupt within the block, from the signal handler."""
        before, self._callback = self._callback, callback
        try:
            yield
        finally:
            self._callback = before


@contextmanager
def deferred() -> Generator[Interrupt, None, None]:
    """Guard a block that starts a task: an interrupt in it is raised at its end.

    The block checks the `Interrupt` while it waits. Signals reach the main thread only; on other
    threads, and where SIGINT is ignored, this does nothing.

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

    # Installed last before the guarded block, and removed first after it.
    if callable(before):
        signal.signal(signal.SIGINT, on_sigint)
    try:
        yield interrupt
    except asyncio.CancelledError:
        # ipykernel turns an interrupt of a cell that awaits into CancelledError.
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
