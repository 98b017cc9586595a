"""Dispatch of a model's requests: to a batch, or to the queue for one at a time."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, TypeVar

from mlx_magic.backends.batch_check.compare_rows import Budget, ProbedModel
from mlx_magic.backends.batch_check.policy import BatchPolicy
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.batching.admission import BatchLimits
from mlx_magic.backends.batching.batch import MAX_DECODE_BATCH, StepFailedError
from mlx_magic.backends.batching.model_batch import ModelBatch
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.result import FinishReason


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


T = TypeVar("T")
Answer = Generator[None, None, FinishReason]


class Dispatch:
    """The batches of one model, and the queue of requests that are answered one at a time.

    Parameters
    ----------
    policy : BatchPolicy
        Whether requests are batched.
    probed : ProbedModel
        The model, for the comparison of its weights.
    new_batch : callable
        Takes the maximum number of requests in decode, and a function that makes their caches
        (None for the library's); returns a batch.
    caches : callable
        Takes a number of bits; returns quantized caches.

    Attributes
    ----------
    policy : BatchPolicy
    batch : ModelBatch or None
        Batch of all requests without `kv_bits`; None if requests are never batched.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        probed: ProbedModel,
        new_batch: Callable[[int, Callable[[], list[Any]] | None], ModelBatch],
        caches: Callable[[int], list[Any]],
    ) -> None:
        self.policy = policy
        self._probed: Any = probed
        self._new_batch: Any = new_batch
        self._caches: Any = caches
        self.batch: ModelBatch | None = (
            new_batch(MAX_DECODE_BATCH, None) if policy.possible else None
        )
        # One request at a time per number of bits: quantized caches are not merged or shared.
        self._quantized: dict[int, ModelBatch] = {}
        # For requests whose step failed in a batch of several.
        self._single: ModelBatch | None = None
        self._prompts = RequestQueue()
        self._turns = RequestQueue()
        self._sequential_limits = BatchLimits()

    def limits(self, kv_bits: int | None) -> BatchLimits:
        """Return the limits of the batch that would answer a request, for memory admission."""
        batch = self._batch_of(kv_bits)
        return self._sequential_limits if batch is None else batch.limits

    def make_prompt_in_order(
        self, making: Generator[None, None, T], cancel: CancelToken
    ) -> Generator[None, None, T]:
        """Make a prompt; if requests are answered one at a time, wait for the earlier prompts.

        Prompts are made concurrently, so that a later one may be ready first.

        Raises
        ------
        Cancelled
            While the request waits.
        """
        with self._prompts.queued() as turn:
            made = yield from making
            yield from turn.wait(cancel, unless=lambda: self.policy.together)
        return made

    def answer(
        self,
        active: ActiveRequest,
        sequential: Callable[[], Answer],
        batched: Callable[[ModelBatch, list[int]], Answer],
    ) -> Answer:
        """Answer a request.

        Parameters
        ----------
        active : ActiveRequest
        sequential : callable
            Answers the request through the library's own streaming, with exclusive use of the
            model.
        batched : callable
            Answers the request in a batch. Takes the batch, and a list of the tokens that were
            reported already, to which it appends.

        Raises
        ------
        Cancelled
            While the request waits.
        """
        kv_bits, policy = active.request.kv_bits, self.policy
        if not policy.together:
            contended = len(self._turns) > 0
            with self._turns.queued() as turn:
                yield from turn.wait(active.cancel, unless=lambda: policy.together)
                if contended or len(self._turns) > 1:
                    # Requests wait for each other, which batching would avoid.
                    yield from self.compare_weights(Budget(None), active.cancel)
                if not policy.together:
                    batch = self._batch_of(kv_bits)
                    return (yield from (sequential() if batch is None else batched(batch, [])))
        batch = self._batch_of(kv_bits)
        assert batch is not None
        reported: list[int] = []
        try:
            return (yield from batched(batch, reported))
        except StepFailedError:
            # Retried below, outside of this block: the error's traceback holds arrays.
            pass
        if self._single is None:
            self._single = self._new_batch(1, None)
        active.prefilling(True)
        # Retry from the start, without reporting the same tokens again.
        return (yield from batched(self._single, reported))

    def compare_weights(self, budget: Budget, cancel: CancelToken) -> Generator[None, None, None]:
        """Compare the weights, unless that was done. See `BatchPolicy.compare_weights`."""
        yield from self.policy.compare_weights(self._probed, budget, cancel)

    def close(self) -> None:
        """Release the model and fail its requests."""
        for batch in (self.batch, self._single, *self._quantized.values()):
            if batch is not None:
                batch.close()
        self.batch = self._single = None
        self._quantized.clear()
        self._new_batch = self._caches = self._probed = None

    def _batch_of(self, kv_bits: int | None) -> ModelBatch | None:
        """Return the batch of a request; None if the library's own streaming answers it.

        A model whose weights are not compared yet has a batch, for one request at a time.
        """
        if not self.policy.possible:
            return None
        if kv_bits is None:
            return self.batch
        if kv_bits not in self._quantized:
            self._quantized[kv_bits] = self._new_batch(1, partial(self._caches, kv_bits))
        return self._quantized[kv_bits]
