"""Keeping weights in memory while they are used, where the platform has a limit (Metal)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Wired:
    """The wired limit, which is one for the process; on the inference thread.

    Set by the first who holds it, and put back by the last: models that are used in turns
    would else put back each other's.
    """

    def __init__(self) -> None:
        self._limit = contextlib.ExitStack()
        self._users = 0

    @contextlib.contextmanager
    def held(self, limit: contextlib.AbstractContextManager[None]) -> Iterator[None]:
        """Hold it within this block.

        Parameters
        ----------
        limit : context manager
            mlx-vlm's or mlx-lm's ``wired_limit``; entered by the first alone.
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
"""That of this process."""
