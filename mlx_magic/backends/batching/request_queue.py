"""FIFO queue of a model's requests, of which one runs at a time."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator

from mlx_magic.cancellation import CancelToken


class RequestQueue:
    """FIFO queue: the first request runs and the others wait."""

    def __init__(self) -> None:
        self._queue: deque[QueuedRequest] = deque()

    def __len__(self) -> int:
        """Return the number of requests, the running one included."""
        return len(self._queue)

    @contextlib.contextmanager
    def queued(self) -> Iterator[QueuedRequest]:
        """Join the queue; leave it at the exit of the context."""
        turn = QueuedRequest(self._queue)
        self._queue.append(turn)
        try:
            yield turn
        finally:
            self._queue.remove(turn)


class QueuedRequest:
    """A request's position in a queue."""

    def __init__(self, queue: deque[QueuedRequest]) -> None:
        self._queue = queue

    def wait(
        self, cancel: CancelToken, *, unless: Callable[[], bool] = lambda: False
    ) -> Generator[None, None, None]:
        """Wait until this request is the first of its queue; one check per slice.

        Parameters
        ----------
        cancel : CancelToken
        unless : callable
            Returns true once the request need not wait any more.

        Raises
        ------
        Cancelled
            While the request waits.
        """
        while self._queue[0] is not self and not unless():
            cancel.checkpoint()
            yield
