"""A batch of requests to one model: slots and steps."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_magic.backends.batching.admission import BatchLimits
from mlx_magic.backends.batching.forward import Inputs
from mlx_magic.backends.batching.sampling import LogitsProcessor, SamplingParams
from mlx_magic.backends.grammars.matcher import GrammarMatcher
from mlx_magic.cancellation import CancelToken
from mlx_magic.errors import EngineError
from mlx_magic.formatting import copy_error

JointPrefill = Literal["alone", "equal", "padded"]
"""How prompts share a prefill: not at all, only those of equal length, or with padding."""

MAX_DECODE_BATCH = 32
"""Maximum number of requests of one model in decode."""

MAX_PREFILL_BATCH = 8
"""Maximum number of prompts in one prefill."""

MAX_LENGTH_RATIO = 1.25
"""Maximum ratio of prompt lengths in one prefill: padding costs time."""

MAX_LENGTH_DIFFERENCE = 16
"""Tokens by which prompts may differ whatever their ratio, such as after a cached prefix."""


class StepFailedError(Exception):
    """A step of several requests failed.

    Which request caused it is unknown, so each has to be answered alone.
    """


@dataclass(frozen=True, slots=True)
class NextToken:
    """The next token of one request.

    Attributes
    ----------
    token : int
    stopped : bool
        Whether it is a stop token, which ends the answer and is not part of it.
    """

    token: int
    stopped: bool = False


@dataclass(slots=True, eq=False)
class Slot:
    """A request's slot in a batch: all that the batch knows of it, from waiting to decode.

    Attributes
    ----------
    uid : int
    tokens : list of int
        Prompt tokens to read, at least one: those after the cached prefix.
    inputs : mapping
        Further inputs of the prompt, see `forward.Inputs`; emptied when prefill begins.
    cache : list or None
        KV caches filled with a prefix, one per layer, owned by this slot until prefill begins.
    checkpoint_at : int
        Position in `tokens` at which prefill pauses for `on_checkpoint`; 0 for none.
    on_checkpoint : callable or None
        Takes the caches when they have read so far.
    params : SamplingParams
    processors : list of callable
        Logits processors.
    matcher : GrammarMatcher or None
        Grammar of the answer.
    read : int
        Prompt tokens read so far.
    position : int
        Tokens sampled so far.
    answer : list of int
        Tokens of the answer that processors know; empty without processors.
    begun : bool
        Whether the first token was handed out at the end of prefill, before the decode step
        that returns it.
    written : deque of NextToken
        Tokens that the request has not taken yet.
    error : BaseException or None
        Why the request failed.
    tick : int
        Last step of the batch that the request has seen.
    must_yield : bool
        Whether the request took a token in this slice and has to yield before the next one.
    background : bool
        Whether other requests go first; see `GenerationRequest`.
    """

    uid: int
    tokens: list[int] = field(default_factory=list)
    inputs: Inputs = field(default_factory=dict)
    cache: list[Any] | None = None
    checkpoint_at: int = 0
    on_checkpoint: Callable[[list[Any]], None] | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    processors: list[LogitsProcessor] = field(default_factory=list)
    matcher: GrammarMatcher | None = None
    read: int = 0
    position: int = 0
    answer: list[int] = field(default_factory=list)
    begun: bool = False
    written: deque[NextToken] = field(default_factory=deque)
    error: BaseException | None = None
    tick: int = -1
    must_yield: bool = False
    background: bool = False

    def shares_prefill_with(self, other: Slot, *, padded: bool) -> bool:
        """Whether both prompts can share a prefill without much padding; or without any."""
        shorter, longer = sorted((len(self.tokens), len(other.tokens)))
        if self.background and not other.background:
            return False  # its tokens would delay the first one of the other
        similar = longer <= MAX_LENGTH_RATIO * shorter or longer - shorter <= MAX_LENGTH_DIFFERENCE
        return (
            (similar if padded else shorter == longer)
            and self.inputs.keys() == other.inputs.keys()
            and (self.cache is None) == (other.cache is None)
            and self.checkpoint_at == other.checkpoint_at
        )

    def give(self, written: NextToken) -> None:
        """Queue a token for the request, unless the request has failed."""
        if self.error is None:
            self.written.append(written)

    def fail(self, error: Exception) -> None:
        """Fail this request at its next slice."""
        # A copy per request: one error raised for several would mix their tracebacks.
        self.error = copy_error(error)
        self.written.clear()


class Batch(ABC):
    """Steps all its requests at once; on the inference thread only.

    Each request is a generator that the engine schedules round-robin. The first request that
    runs after a step makes the next step for all; the others then find their token queued. So
    a batch needs no scheduler of its own, requests join and leave between two steps, and
    several batches share the thread fairly.
    """

    limits: BatchLimits
    """Limits of this batch, for memory admission."""

    def __init__(self) -> None:
        self._uids = itertools.count()
        self._tick = 0
        self._slots: dict[int, Slot] = {}

    def __len__(self) -> int:
        """Return the number of requests in the batch."""
        return len(self._slots)

    def take_slot(self, **fields: Any) -> Slot:
        """Add a request and return its slot, with these fields; the subclass queues its prompt.

        The request makes no step in its first slice, so that requests which arrive together
        share a prefill.
        """
        slot = Slot(next(self._uids), **fields)
        self._slots[slot.uid] = slot
        return slot

    def leave(self, slot: Slot) -> None:
        """Remove a request in whatever state it is, without effect on the others."""
        if self._slots.pop(slot.uid, None) is not None:
            self._drop(slot.uid)

    def follow(self, slot: Slot, cancel: CancelToken) -> Generator[None, None, Any]:
        """Wait for this request's next token, and step the batch when a step is due.

        Yields
        ------
        None
            After each slice.

        Returns
        -------
        NextToken or None
            None during prefill; ``slot.read`` is its progress.

        Raises
        ------
        Cancelled
            At the first slice after `cancel` was set.
        StepFailedError
            A step of several requests failed.
        """
        if slot.must_yield:
            slot.must_yield = False
            yield
        cancel.checkpoint()
        needs_step = not slot.written and slot.error is None
        # If the tick differs, another request has made the step that this one waits for.
        if needs_step and slot.tick == self._tick:
            self.advance()
        slot.tick = self._tick
        if slot.error is not None:
            raise slot.error
        slot.must_yield = True
        return slot.written.popleft() if slot.written else None

    def advance(self) -> None:
        """Make the next step for all requests."""
        self._tick += 1
        try:
            self._step()
        except Exception as error:
            # Requests that still wait for their prefill took no part in the step.
            uids = self._abandon()
            self._fail([self._slots[uid] for uid in uids if uid in self._slots], error)

    def _fail(self, slots: Sequence[Slot], error: Exception) -> None:
        """Fail the requests of a failed step; if there are several, each is retried alone."""
        # The message without the traceback, whose frames hold arrays.
        shared = StepFailedError(str(copy_error(error)))
        for slot in slots:
            slot.fail(error if len(slots) == 1 else shared)

    def _end_all(self) -> None:
        """Fail every request of a model that is unloaded; normally there is none."""
        for each in self._slots.values():
            each.fail(EngineError("The model was unloaded meanwhile: ask again."))
        self._clear()

    @abstractmethod
    def close(self) -> None:
        """Release the model and every request."""

    @abstractmethod
    def _step(self) -> None:
        """Decode one token of each request, and read one chunk of a prefill."""

    @abstractmethod
    def _abandon(self) -> list[int]:
        """Drop the prefill and the decode batch; return the uids of their requests."""

    @abstractmethod
    def _drop(self, uid: int) -> None:
        """Remove a request in whatever state it is."""

    @abstractmethod
    def _clear(self) -> None:
        """Remove every request, after an error."""
