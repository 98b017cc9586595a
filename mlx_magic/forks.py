"""A fork of this process finds the inference thread at rest, and goes on beside it.

``!command`` in a notebook, ``os.fork``, ``pty.fork`` and multiprocessing fork the process. OpenBLAS
ends its threads before a fork. When one of them was at a product of MLX's, the product never ended
(15 of 15 forks during answers), and sometimes the fork did not either.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

LONGEST = 0.3
"""Seconds that a fork waits for the step in hand, before it lets only OpenBLAS come to rest."""


class PausableEngine(Protocol):
    """What has a thread that uses MLX. See `engine.Engine`."""

    def rest(self, seconds: float) -> bool:
        """Come to rest; returns whether it does."""

    def go_on(self) -> None:
        """Work again."""


class LibraryThreads(Protocol):
    """Threads of a library, such as OpenBLAS, that a fork must find at rest."""

    def come_to_rest(self) -> None:
        """Wait for what is under way, and begin nothing new."""

    def go_on(self) -> None:
        """Work again."""


_libraries: list[LibraryThreads] = []
_guarded: weakref.WeakSet[PausableEngine] = weakref.WeakSet()
_lock = threading.Lock()
_registered = False
# Of the fork that is under way: the calls before and after it are on one thread.
_resting: dict[int, list[PausableEngine]] = {}


def guard(engine: PausableEngine) -> None:
    """Let an engine rest at each fork of this process, for as long as it is there."""
    global _registered
    with _lock:
        _guarded.add(engine)
        if not _registered:
            _registered = True
            os.register_at_fork(
                before=_before, after_in_parent=_after, after_in_child=_after_in_child
            )


def register_library_threads(library: LibraryThreads) -> None:
    """Let a library's threads rest where an engine does not come to rest in time."""
    if library not in _libraries:
        _libraries.append(library)


def _before() -> None:
    with _lock:
        engines = list(_guarded)
    _resting[threading.get_ident()] = engines
    # All are asked, though one of them may not come to rest.
    rested = [engine.rest(LONGEST) for engine in engines]
    if not all(rested):
        for library in _libraries:
            library.come_to_rest()


def _after() -> None:
    for library in _libraries:
        library.go_on()
    _release()


def _after_in_child() -> None:
    # OpenBLAS begins its threads anew when they are needed.
    _release()


def _release() -> None:
    for engine in _resting.pop(threading.get_ident(), []):
        engine.go_on()
