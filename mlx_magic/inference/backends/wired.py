"""Keeping weights in memory while they are used, where the platform has a limit (Metal)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_stack = contextlib.ExitStack()
_users = 0


@contextlib.contextmanager
def wired(limit: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Hold the process's wired limit within this block; on the inference thread.

    The limit is one for the process: set by the first who holds it, and put back by the last.
    Models that are used in turns would else put back each other's.

    Parameters
    ----------
    limit : context manager
        mlx-vlm's or mlx-lm's ``wired_limit``; entered by the first alone.
    """
    global _users
    if not _users:
        _stack.enter_context(limit)
    _users += 1
    try:
        yield
    finally:
        _users -= 1
        if not _users:
            _stack.close()
