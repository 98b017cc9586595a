"""The one session of this process: made at its first use, with the real backends."""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import TYPE_CHECKING

from mlx_magic.errors import EngineError
from mlx_magic.inference.backends import device, surroundings
from mlx_magic.inference.engine import FORKED, Engine
from mlx_magic.inference.pool import ModelPool

if TYPE_CHECKING:
    from mlx_magic.inference.session import Session

_session: Session | None = None
_process = 0
_lock = threading.Lock()


def current() -> Session:
    """Return this process's session, making it on first use.

    Raises
    ------
    EngineError
        In a process that was forked from one with a session: its threads stayed there.
    """
    global _session, _process
    # Before the lock: another thread may have held it at the fork.
    if _session is not None and _process not in (0, os.getpid()):
        raise EngineError(FORKED)
    with _lock:
        if _session is None:
            _session, _process = _make(), os.getpid()
        return _session


def replace_current(session: Session | None) -> Session | None:
    """Put another session in its place; for tests. Returns the one before."""
    global _session
    with _lock:
        before, _session = _session, session
        return before


def _make() -> Session:
    from mlx_magic.inference.alias_file import AliasFile, default_path
    from mlx_magic.inference.backends.text import TextBackend
    from mlx_magic.inference.backends.vision import VisionBackend
    from mlx_magic.inference.names import Names
    from mlx_magic.inference.session import Session

    surroundings.open_standard_files()
    kept = default_path()
    engine = Engine(at_end=device.release_thread, settle=device.settle, tidy=device.give_back)
    pool = ModelPool(
        engine,
        {"vision": VisionBackend(), "text": TextBackend()},
        clock=time.perf_counter,
    )
    made = Session(engine, pool, names=Names(None if kept is None else AliasFile(kept)))
    atexit.register(made.close)
    return made
