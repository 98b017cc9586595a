"""Requests of a model that go on one at a time, in the order of asking."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator

from mlx_magic.cancellation import CancelToken


class RequestQueue:
    """A queue in which the first one goes on and the others wait."""

    def __init__(self) -> None:
        self._queue: deque[QueuedRequest] = deque()

    def __len__(self) -> int:
        """Return how many there are: the one whose turn it is, and those that wait."""
        return len(self._queue)

    @contextlib.contextmanager
    def queued(self) -> Iterator[QueuedRequest]:
        """Stand in the queue; whoever leaves the context leaves the queue."""
        turn = QueuedRequest(self._queue)
        self._queue.append(turn)
        try:
            yield turn
        finally:
            self._queue.remove(turn)


class QueuedRequest:
    """One place in a queue."""

    def __init__(self, queue: deque[QueuedRequest]) -> None:
        self._queue = queue

    def wait(
        self, cancel: CancelToken, *, unless: Callable[[], bool] = lambda: False
    ) -> Generator[None, None, None]:
        """Wait until it is the first of its queue; a look a slice.

        Parameters
        ----------
        cancel : CancelToken
        unless : callable
            Says that no turn is needed any more.

        Raises
        ------
        Cancelled
            While it waits.
        """
        while self._queue[0] is not self and not unless():
            cancel.checkpoint()
            yield
