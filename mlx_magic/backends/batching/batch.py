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
from mlx_magic.formatting import again

MAX_DECODE_BATCH = 32
"""Answers of one model that are written at once."""

MAX_PREFILL_BATCH = 8
"""Prompts that are read in one go where they come at once."""

MAX_LENGTH_RATIO = 1.25
"""How much longer than the shortest a prompt may be that is read with it: padding costs time."""

MAX_LENGTH_DIFFERENCE = 16
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
    must_yield : bool
        Whether it took a token in this slice, and is to let others go on.
    """

    uid: int
    read: int = 0
    written: deque[NextToken] = field(default_factory=deque)
    error: BaseException | None = None
    tick: int = -1
    must_yield: bool = False

    def give(self, written: NextToken) -> None:
        """Hand out a token; none where the request has failed meanwhile."""
        if self.error is None:
            self.written.append(written)

    def fail(self, error: Exception) -> None:
        """End this request alone, at its next turn."""
        # One of its own: raised for several requests, it would mix their frames.
        self.error = again(error)
        self.written.clear()


class Batch(ABC):
    """Steps all its requests at once; the engine's thread only.

    Each request is a piece of work of its own, and the engine goes round them. The
    first that comes by after a step makes the next one, for all; the others find
    their token waiting. So a batch needs no scheduler of its own, requests join and
    leave between two steps, and several batches share the thread fairly.
    """

    limits: BatchLimits
    """What those who are answered together take."""

    def __init__(self) -> None:
        self._uids = itertools.count()
        self._tick = 0
        self._slots: dict[int, Slot] = {}

    def __len__(self) -> int:
        """Return how many requests have a seat."""
        return len(self._slots)

    def take_slot(self) -> Slot:
        """Let a request in; what it wants is queued by the class below.

        It makes no step in its first slice: those that come with it get in before the
        next one, and are read together.
        """
        slot = Slot(next(self._uids))
        self._slots[slot.uid] = slot
        return slot

    def leave(self, slot: Slot) -> None:
        """Take a request out, wherever it is; the others do not notice."""
        if self._slots.pop(slot.uid, None) is not None:
            self._drop(slot.uid)

    def follow(self, slot: Slot, cancel: CancelToken) -> Generator[None, None, Any]:
        """Wait for this request's next token, stepping the batch where it is due.

        Yields
        ------
        None
            After each slice.

        Returns
        -------
        Written or None
            None where it is still being read: look at ``slot.read``.

        Raises
        ------
        Cancelled
            At the first slice after `cancel` was asked.
        StepFailedError
            Where a step of several requests failed.
        """
        if slot.must_yield:
            slot.must_yield = False
            yield
        cancel.checkpoint()
        needs_step = not slot.written and slot.error is None
        # Else somebody has made the step that this request waits for.
        if needs_step and slot.tick == self._tick:
            self.advance()
        slot.tick = self._tick
        if slot.error is not None:
            raise slot.error
        slot.must_yield = True
        return slot.written.popleft() if slot.written else None

    def advance(self) -> None:
        """Make the next step, for all requests."""
        self._tick += 1
        try:
            self._step()
        except Exception as error:
            # Those who wait had no part in it.
            uids = self._abandon()
            self._fail([self._slots[uid] for uid in uids if uid in self._slots], error)

    def _fail(self, slots: Sequence[Slot], error: Exception) -> None:
        """End requests that shared a step which failed; of several, each is answered anew."""
        # With its message and without its frames, which hold arrays.
        shared = StepFailedError(str(again(error)))
        for slot in slots:
            slot.fail(error if len(slots) == 1 else shared)

    def _end_all(self) -> None:
        """Forget every request of a model that leaves; normally there is none."""
        for each in self._slots.values():
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


def similar_lengths(one: int, other: int) -> bool:
    """Say whether prompts of so many tokens can be read in one go without wasting much of it."""
    shorter, longer = sorted((one, other))
    return longer <= MAX_LENGTH_RATIO * shorter or longer - shorter <= MAX_LENGTH_DIFFERENCE
