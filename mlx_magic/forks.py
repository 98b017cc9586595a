"""Pauses the inference thread while this process forks.

``!command`` in a notebook, ``os.fork``, ``pty.fork`` and multiprocessing fork the process. OpenBLAS
ends its threads before a fork. When one of them was computing a matrix product for MLX, the product
never returned (15 of 15 forks during answers), and sometimes the fork did not either.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

LONGEST = 0.3
"""Seconds that a fork waits for the running step. After that only OpenBLAS is paused."""


class PausableEngine(Protocol):
    """An object with a thread that uses MLX. See `engine.Engine`."""

    def pause(self, seconds: float) -> bool:
        """Pause the thread; return whether it is paused."""

    def resume(self) -> None:
        """Resume the thread."""


class LibraryThreads(Protocol):
    """Threads of a library, such as OpenBLAS, that must be idle during a fork."""

    def pause(self) -> None:
        """Wait for running computations, and begin no new ones."""

    def resume(self) -> None:
        """Resume the threads."""


_libraries: list[LibraryThreads] = []
_guarded: weakref.WeakSet[PausableEngine] = weakref.WeakSet()
_lock = threading.Lock()
_registered = False
# Thread id to engines, while that thread forks: the hooks before and after run on it.
_resting: dict[int, list[PausableEngine]] = {}


def guard(engine: PausableEngine) -> None:
    """Pause an engine at each fork of this process; held by a weak reference."""
    global _registered
    with _lock:
        _guarded.add(engine)
        if not _registered:
            _registered = True
            os.register_at_fork(
                before=_before, after_in_parent=_after, after_in_child=_after_in_child
            )


def register_library_threads(library: LibraryThreads) -> None:
    """Pause a library's threads at forks for which an engine does not pause in time."""
    if library not in _libraries:
        _libraries.append(library)


def _before() -> None:
    with _lock:
        engines = list(_guarded)
    _resting[threading.get_ident()] = engines
    # Every engine is paused, even if an earlier one did not pause in time.
    rested = [engine.pause(LONGEST) for engine in engines]
    if not all(rested):
        for library in _libraries:
            library.pause()


def _after() -> None:
    for library in _libraries:
        library.resume()
    _release()


def _after_in_child() -> None:
    # OpenBLAS starts new threads when they are needed.
    _release()


def _release() -> None:
    for engine in _resting.pop(threading.get_ident(), []):
        engine.resume()
