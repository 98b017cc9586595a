"""Requests to one model that are answered together: who sits where, and whose turn it is."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.backends.batching.admission_queue import BatchLimits
from mlx_magic.cancellation import CancelToken
from mlx_magic.errors import EngineError
from mlx_magic.formatting import copy_error

MOST_TOGETHER = 32
"""Answers of one model that are written at once."""

MOST_READ_TOGETHER = 8
"""Prompts that are read in one go where they come at once."""

LIKE_LENGTHS = 1.25
"""How much longer than the shortest a prompt may be that is read with it: padding costs time."""

LIKE_TOKENS = 16
"""The same in tokens, for short ones: of a prompt that is known but for its end, say."""


class StepFailedError(Exception):
    """Raised where a step failed that was one for several requests.

    Which of them is at fault is not known: each is to be answered by itself.
    """


@dataclass(frozen=True, slots=True)
class NextToken:
    """A token of one request.

    Attributes
    ----------
    token : int
    stopped : bool
        Whether it ends the answer, and is no part of it.
    """

    token: int
    stopped: bool = False


@dataclass(slots=True, eq=False)
class Slot:
    """A request's place in a batch.

    Attributes
    ----------
    uid : int
    read : int
        Prompt tokens that were read so far.
    written : deque of Written
        What the request has not taken yet.
    error : BaseException or None
        Why it cannot go on.
    tick : int
        The batch's step that it saw last.
    owes : bool
        Whether it took a token in this slice, and is to let others go on.
    """

    uid: int
    read: int = 0
    written: deque[NextToken] = field(default_factory=deque)
    error: BaseException | None = None
    tick: int = -1
    owes: bool = False

    def give(self, written: NextToken) -> None:
        """Hand out a token; none where the request has failed meanwhile."""
        if self.error is None:
            self.written.append(written)

    def fail(self, error: Exception) -> None:
        """End this request alone, at its next turn."""
        # One of its own: raised for several requests, it would mix their frames.
        self.error = copy_error(error)
        self.written.clear()


class Batch(ABC):
    """Steps all its requests at once; the engine's thread only.

    Each request is a piece of work of its own, and the engine goes round them. The
    first that comes by after a step makes the next one, for all; the others find
    their token waiting. So a batch needs no scheduler of its own, requests join and
    leave between two steps, and several batches share the thread fairly.
    """

    table: BatchLimits
    """What those who are answered together take."""

    def __init__(self) -> None:
        self._uids = itertools.count()
        self._tick = 0
        self._seats: dict[int, Slot] = {}

    def __len__(self) -> int:
        """Return how many requests have a seat."""
        return len(self._seats)

    def take_seat(self) -> Slot:
        """Let a request in; what it wants is queued by the class below.

        It makes no step in its first slice: those that come with it get in before the
        next one, and are read together.
        """
        seat = Slot(next(self._uids))
        self._seats[seat.uid] = seat
        return seat

    def leave(self, seat: Slot) -> None:
        """Take a request out, wherever it is; the others do not notice."""
        if self._seats.pop(seat.uid, None) is not None:
            self._drop(seat.uid)

    def follow(self, seat: Slot, cancel: CancelToken) -> Generator[None, None, Any]:
        """Wait for this request's next token, stepping the batch where it is due.

        Yields
        ------
        None
            After each slice.

        Returns
        -------
        Written or None
            None where it is still being read: look at ``seat.read``.

        Raises
        ------
        Cancelled
            At the first slice after `cancel` was asked.
        StepFailedError
            Where a step of several requests failed.
        """
        if seat.owes:
            seat.owes = False
            yield
        cancel.checkpoint()
        waits = not seat.written and seat.error is None
        # Else somebody has made the step that this request waits for.
        if waits and seat.tick == self._tick:
            self.advance()
        seat.tick = self._tick
        if seat.error is not None:
            raise seat.error
        seat.owes = True
        return seat.written.popleft() if seat.written else None

    def advance(self) -> None:
        """Make the next step, for all requests."""
        self._tick += 1
        try:
            self._step()
        except Exception as error:
            # Those who wait had no part in it.
            uids = self._abandon()
            self._fail([self._seats[uid] for uid in uids if uid in self._seats], error)

    def _fail(self, seats: Sequence[Slot], error: Exception) -> None:
        """End requests that shared a step which failed; of several, each is answered anew."""
        # With its message and without its frames, which hold arrays.
        shared = StepFailedError(str(copy_error(error)))
        for seat in seats:
            seat.fail(error if len(seats) == 1 else shared)

    def _end_all(self) -> None:
        """Forget every request of a model that leaves; normally there is none."""
        for each in self._seats.values():
            each.fail(EngineError("The model was unloaded meanwhile: ask again."))
        self._clear()

    @abstractmethod
    def close(self) -> None:
        """Let go of the model, and of every request."""

    @abstractmethod
    def _step(self) -> None:
        """Write a token of each request that is being written, and read a chunk of one prompt."""

    @abstractmethod
    def _abandon(self) -> list[int]:
        """Forget what is being read and written; return whose it was, by uid."""

    @abstractmethod
    def _drop(self, uid: int) -> None:
        """Take a request out of whatever state it is in."""

    @abstractmethod
    def _clear(self) -> None:
        """Forget every request, after an error."""


def alike(one: int, other: int) -> bool:
    """Say whether prompts of so many tokens can be read in one go without wasting much of it."""
    shorter, longer = sorted((one, other))
    return longer <= LIKE_LENGTHS * shorter or longer - shorter <= LIKE_TOKENS
