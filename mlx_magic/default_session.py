"""The one session of this process, created on first use with the real backends."""

from __future__ import annotations

import atexit
import os
import threading
import time

from mlx_magic.backends.device import platform
from mlx_magic.backends.loading import library_environment
from mlx_magic.engine.engine import FORKED, Engine
from mlx_magic.errors import EngineError
from mlx_magic.model_pool.pool import ModelPool
from mlx_magic.session import Session

_session: Session | None = None
_process = 0
_lock = threading.Lock()


def current() -> Session:
    """Return this process's session, making it on first use.

    Raises
    ------
    EngineError
        In a process forked from one with a session: threads do not survive a fork.
    """
    global _session, _process
    # Checked before taking the lock: another thread may have held it at the fork.
    if _session is not None and _process not in (0, os.getpid()):
        raise EngineError(FORKED)
    with _lock:
        if _session is None:
            _session, _process = _make(), os.getpid()
        return _session


def replace_current(session: Session | None) -> Session | None:
    """Replace the session, for tests; return the previous one."""
    global _session
    with _lock:
        before, _session = _session, session
        return before


def _make() -> Session:
    from mlx_magic.backends.text.backend import TextBackend
    from mlx_magic.backends.vision.backend import VisionBackend
    from mlx_magic.models.catalog.alias_file import AliasFile, default_path
    from mlx_magic.models.catalog.aliases import Names

    library_environment.open_standard_files()
    alias_path = default_path()
    engine = Engine(at_end=platform.release_thread, settle=platform.settle, tidy=platform.give_back)
    pool = ModelPool(
        engine,
        {"vision": VisionBackend(), "text": TextBackend()},
        clock=time.perf_counter,
        names=Names(None if alias_path is None else AliasFile(alias_path)),
    )
    made = Session(engine, pool)
    atexit.register(made.close)
    return made
