"""FIFO queue in which requests of all models wait for memory, and their reservations."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from mlx_magic.backends.batching.memory_estimate import RequestMemory
from mlx_magic.cancellation import CancelToken


@dataclass(frozen=True, slots=True, eq=False)
class BatchLimits:
    """Limits of one batch. Its KV cache has one row per request, as long as the longest request.

    Attributes
    ----------
    most : int
        Maximum number of requests in decode.
    held : callable
        Returns the bytes of keys and values held now.
    """

    most: int = 1
    held: Callable[[], int] = lambda: 0


@dataclass(slots=True, eq=False)
class Reservation:
    """Memory that one request may take.

    Attributes
    ----------
    limits : BatchLimits
        Limits of the batch that answers it.
    need : RequestMemory
    prefilling : bool
        Whether its prefill has not ended yet.
    forgot : bool
        Whether the caches were cleared for it.
    """

    limits: BatchLimits
    need: RequestMemory
    prefilling: bool = True
    forgot: bool = False


class AdmissionQueue:
    """Admits requests in FIFO order while memory lasts; on the inference thread.

    One queue for all models, so that a busy model cannot starve a long prompt of another.

    Attributes
    ----------
    admitted : list of Reservation
        Reservations of the running requests.
    """

    def __init__(self) -> None:
        self.admitted: list[Reservation] = []
        self._waiting: deque[Reservation] = deque()

    def __len__(self) -> int:
        """Return the number of waiting requests."""
        return len(self._waiting)

    def enter(
        self,
        reservation: Reservation,
        admits: Callable[[Reservation], bool],
        cancel: CancelToken,
        on_wait: Callable[[], None],
    ) -> Generator[None, None, contextlib.AbstractContextManager[Reservation]]:
        """Wait until there is memory for a request; one check per slice.

        Parameters
        ----------
        reservation : Reservation
        admits : callable
            Whether the reservation fits beside the admitted ones.
        cancel : CancelToken
        on_wait : callable
            Called once, if the request has to wait.

        Returns
        -------
        context manager
            Holds the reservation until its exit.

        Raises
        ------
        Cancelled
            While the request waits.
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
        """Drop all reservations, after the inference thread has died."""
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
        """Bytes of keys and values that the admitted requests hold now."""
        return sum(limits.held() for limits in self._all_limits())

    def committed(self, reservation: Reservation) -> int:
        """Bytes that the admitted requests and this one will take together at most."""
        admitted = [*self.admitted, reservation]
        return sum(
            _peak_bytes(limits, [each for each in admitted if each.limits is limits])
            for limits in self._all_limits(reservation)
        )

    def _all_limits(self, *more: Reservation) -> list[BatchLimits]:
        return list(dict.fromkeys(reservation.limits for reservation in (*self.admitted, *more)))


def _peak_bytes(limits: BatchLimits, reservations: list[Reservation]) -> int:
    rows = min(len(reservations), limits.most)
    cache = rows * max(reservation.need.cache for reservation in reservations)
    prefilling = [reservation.need for reservation in reservations if reservation.prefilling]
    # Prompts that share a prefill share its chunk.
    chunk = max((need.reading for need in prefilling), default=0)
    # One array of logits for all prompts of a prefill.
    logits = max((need.logits for need in prefilling), default=0)
    return max(cache, limits.held()) + chunk + logits


SHARED = AdmissionQueue()
"""The queue of this process, which has one MLX."""
