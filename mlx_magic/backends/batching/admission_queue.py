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
    table : BatchLimits
        Beside whom it is answered.
    need : Need
    reading : bool
        Whether its prompt is still to be read.
    forgot : bool
        Whether what is kept for reuse was given up for it.
    """

    table: BatchLimits
    need: Need
    reading: bool = True
    forgot: bool = False


class AdmissionQueue:
    """Lets requests in as long as memory lasts; the first in line is always the next.

    One line for all models, and nobody overtakes: else a model that is asked all the time
    would never leave enough for another one's long prompt. Use it on the inference thread.

    Attributes
    ----------
    inside : list of Reservation
        Those who were let in.
    """

    def __init__(self) -> None:
        self.inside: list[Reservation] = []
        self._waiting: deque[Reservation] = deque()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def enter(
        self,
        place: Reservation,
        admits: Callable[[Reservation], bool],
        cancel: CancelToken,
        waits: Callable[[], None],
    ) -> Generator[None, None, contextlib.AbstractContextManager[Reservation]]:
        """Wait until there is memory for a request; a look a slice.

        Parameters
        ----------
        place : Reservation
        admits : callable
            Says whether it fits beside those inside.
        cancel : CancelToken
        waits : callable
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
        self._waiting.append(place)
        try:
            told = False
            while self._waiting[0] is not place or not admits(place):
                if not told:
                    told = True
                    waits()
                yield
                cancel.checkpoint()
            self.inside.append(place)
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(place)
        return self._kept(place)

    def forget(self) -> None:
        """Forget everybody: their thread has died, and they with it."""
        self.inside.clear()
        self._waiting.clear()

    @contextlib.contextmanager
    def _kept(self, place: Reservation) -> Iterator[Reservation]:
        try:
            yield place
        finally:
            with contextlib.suppress(ValueError):
                self.inside.remove(place)

    def held(self) -> int:
        """Bytes that the answers of those inside take now."""
        return sum(table.held() for table in self._tables())

    def promised(self, place: Reservation) -> int:
        """Bytes that all inside will take at most, and this one with them."""
        inside = [*self.inside, place]
        return sum(
            _together(table, [each for each in inside if each.table is table])
            for table in self._tables(place)
        )

    def _tables(self, *more: Reservation) -> list[BatchLimits]:
        return list(dict.fromkeys(place.table for place in (*self.inside, *more)))


def _together(table: BatchLimits, places: list[Reservation]) -> int:
    rows = min(len(places), table.most)
    cache = rows * max(place.need.cache for place in places)
    reading = [place.need for place in places if place.reading]
    chunk = max((need.reading for need in reading), default=0)
    # These are shared by those who are read together.
    logits = max((need.logits for need in reading), default=0)
    chunks = min(len(reading), table.read_together) * chunk + logits
    return max(cache, table.held()) + chunks


SHARED = AdmissionQueue()
"""That of this process: it has one MLX."""
