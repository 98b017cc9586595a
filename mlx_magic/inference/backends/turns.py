"""Answers of a model that are written one at a time, in the order of asking."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator

from mlx_magic.inference.cancel import CancelToken


class Turns:
    """A queue in which the first one is answered and the others wait."""

    def __init__(self) -> None:
        self._waiting: deque[object] = deque()

    def __len__(self) -> int:
        """Return how many there are: the one that is answered, and those that wait."""
        return len(self._waiting)

    def wait(
        self, cancel: CancelToken, *, unless: Callable[[], bool] = lambda: False
    ) -> Generator[None, None, contextlib.AbstractContextManager[None]]:
        """Wait for this request's turn; a look a slice.

        Parameters
        ----------
        cancel : CancelToken
        unless : callable
            Says that no turn is needed any more.

        Returns
        -------
        context manager
            Keeps the turn until the answer has ended.

        Raises
        ------
        Cancelled
            While it waits.
        """
        ticket = object()
        self._waiting.append(ticket)
        try:
            while self._waiting[0] is not ticket and not unless():
                cancel.checkpoint()
                yield
        except BaseException:
            self._waiting.remove(ticket)
            raise
        return self._kept(ticket)

    @contextlib.contextmanager
    def _kept(self, ticket: object) -> Iterator[None]:
        try:
            yield
        finally:
            self._waiting.remove(ticket)
