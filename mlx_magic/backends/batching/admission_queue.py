"""The line in which requests of all models wait for memory, and what was promised to whom."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from mlx_magic.backends.batching.memory_estimate import Need
from mlx_magic.cancellation import CancelToken


@dataclass(frozen=True, slots=True, eq=False)
class BatchLimits:
    """Answers that are written together: their caches are as long as the longest of them.

    Attributes
    ----------
    most : int
        Answers that are written at once.
    read_together : int
        Prompts that are read in one go at most.
    held : callable
        Returns the bytes that keys and values take now.
    """

    most: int = 1
    read_together: int = 1
    held: Callable[[], int] = lambda: 0


@dataclass(slots=True, eq=False)
class Reservation:
    """What one request may take.

    Attributes
    ----------
    limits : BatchLimits
        Beside whom it is answered.
    need : Need
    prefilling : bool
        Whether its prompt is still to be read.
    forgot : bool
        Whether what is kept for reuse was given up for it.
    """

    limits: BatchLimits
    need: Need
    prefilling: bool = True
    forgot: bool = False


class AdmissionQueue:
    """Lets requests in as long as memory lasts; the first in line is always the next.

    One line for all models, and nobody overtakes: else a model that is asked all the time
    would never leave enough for another one's long prompt. Use it on the inference thread.

    Attributes
    ----------
    admitted : list of Reservation
        Those who were let in.
    """

    def __init__(self) -> None:
        self.admitted: list[Reservation] = []
        self._waiting: deque[Reservation] = deque()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def enter(
        self,
        reservation: Reservation,
        admits: Callable[[Reservation], bool],
        cancel: CancelToken,
        on_wait: Callable[[], None],
    ) -> Generator[None, None, contextlib.AbstractContextManager[Reservation]]:
        """Wait until there is memory for a request; a look a slice.

        Parameters
        ----------
        reservation : Reservation
        admits : callable
            Says whether it fits beside those inside.
        cancel : CancelToken
        on_wait : callable
            Called once, if it has to wait.

        Returns
        -------
        context manager
            Keeps the place for as long as the request is answered.

        Raises
        ------
        Cancelled
            While it waits.
        """
        self._waiting.append(reservation)
        try:
            notified = False
            while self._waiting[0] is not reservation or not admits(reservation):
                if not notified:
                    notified = True
                    on_wait()
                yield
                cancel.checkpoint()
            self.admitted.append(reservation)
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(reservation)
        return self._held_until_exit(reservation)

    def forget(self) -> None:
        """Forget everybody: their thread has died, and they with it."""
        self.admitted.clear()
        self._waiting.clear()

    @contextlib.contextmanager
    def _held_until_exit(self, reservation: Reservation) -> Iterator[Reservation]:
        try:
            yield reservation
        finally:
            with contextlib.suppress(ValueError):
                self.admitted.remove(reservation)

    def held(self) -> int:
        """Bytes that the answers of those inside take now."""
        return sum(limits.held() for limits in self._batches())

    def committed(self, reservation: Reservation) -> int:
        """Bytes that all inside will take at most, and this one with them."""
        admitted = [*self.admitted, reservation]
        return sum(
            _peak_bytes(limits, [each for each in admitted if each.limits is limits])
            for limits in self._batches(reservation)
        )

    def _batches(self, *more: Reservation) -> list[BatchLimits]:
        return list(dict.fromkeys(reservation.limits for reservation in (*self.admitted, *more)))


def _peak_bytes(limits: BatchLimits, reservations: list[Reservation]) -> int:
    rows = min(len(reservations), limits.most)
    cache = rows * max(reservation.need.cache for reservation in reservations)
    prefilling = [reservation.need for reservation in reservations if reservation.prefilling]
    chunk = max((need.reading for need in prefilling), default=0)
    # These are shared by those who are read together.
    logits = max((need.logits for need in prefilling), default=0)
    chunks = min(len(prefilling), limits.read_together) * chunk + logits
    return max(cache, limits.held()) + chunks


SHARED = AdmissionQueue()
"""That of this process: it has one MLX."""
