"""Wiring of weights in memory while they are used, on platforms with a wired limit (Metal)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Wired:
    """Reference count of the process's wired limit; on the inference thread.

    The first user sets the limit and the last one resets it. Otherwise models that are used in
    turn would reset each other's limit.
    """

    def __init__(self) -> None:
        self._limit = contextlib.ExitStack()
        self._users = 0

    @contextlib.contextmanager
    def held(self, limit: contextlib.AbstractContextManager[None]) -> Iterator[None]:
        """Hold the wired limit within this block.

        Parameters
        ----------
        limit : context manager
            ``wired_limit`` of mlx-vlm or mlx-lm; only the first user enters it.
        """
        if not self._users:
            self._limit.enter_context(limit)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._limit.close()


SHARED = Wired()
"""The instance of this process."""
