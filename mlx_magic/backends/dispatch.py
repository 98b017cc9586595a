"""With whom a request is answered: beside others in a batch, or when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Generic, TypeVar

from mlx_magic.backends.batch_check.compare_rows import Budget, ProbedModel
from mlx_magic.backends.batch_check.policy import BatchPolicy
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.batching.admission_queue import BatchLimits
from mlx_magic.backends.batching.batch import MAX_DECODE_BATCH, Batch, StepFailedError
from mlx_magic.backends.batching.request_queue import RequestQueue
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.result import FinishReason

B = TypeVar("B", bound=Batch)
T = TypeVar("T")
Answer = Generator[None, None, FinishReason]


class Dispatch(Generic[B]):
    """The batches of one model, and the queue of those that are answered one at a time.

    Parameters
    ----------
    policy : BatchPolicy
        Whether there is a batch for all.
    probed : ProbedModel
        What is looked at, if its weights were not.
    new_batch : callable
        Takes how many answers are written at once, and what makes their caches if not the
        library; returns a batch.
    caches : callable
        Takes bits, and returns caches that quantize what they are given.

    Attributes
    ----------
    policy : BatchPolicy
    batch : Batch or None
        That of all plain requests; None where they are never answered together.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        probed: ProbedModel,
        new_batch: Callable[[int, Callable[[], list[Any]] | None], B],
        caches: Callable[[int], list[Any]],
    ) -> None:
        self.policy = policy
        self._probed: Any = probed
        self._new_batch: Any = new_batch
        self._caches: Any = caches
        possible = policy.together or policy.not_compared
        self.batch: B | None = new_batch(MAX_DECODE_BATCH, None) if possible else None
        # For each number of bits: quantized caches are not put together, nor shared.
        self._quantized: dict[int, B] = {}
        # For those whose step with others failed.
        self._single: B | None = None
        self._prompts = RequestQueue()
        self._turns = RequestQueue()
        self._sequential_limits = BatchLimits()

    def limits(self, kv_bits: int | None) -> BatchLimits:
        """Return beside whom a request takes memory."""
        batch = self._batch_of(kv_bits)
        # Each batch has its own.
        return self._sequential_limits if batch is None else batch.limits

    def in_order(
        self, making: Generator[None, None, T], cancel: CancelToken
    ) -> Generator[None, None, T]:
        """Make a prompt; where answers are written one at a time, hand it over in its turn.

        Prompts are made beside each other, and a later one may be ready first.

        Raises
        ------
        Cancelled
            While it waits.
        """
        with self._prompts.queued() as turn:
            made = yield from making
            yield from turn.wait(cancel, unless=lambda: self.policy.together)
        return made

    def answer(
        self,
        active: ActiveRequest,
        sequential: Callable[[], Answer],
        batched: Callable[[B, list[int]], Answer],
    ) -> Answer:
        """Answer a request.

        Parameters
        ----------
        active : ActiveRequest
        sequential : callable
            Answers it through its library's own way; nothing else uses the model meanwhile.
        batched : callable
            Answers it in a batch; takes the tokens that were told before, and adds to them.

        Raises
        ------
        Cancelled
            While it waits.
        """
        kv_bits, policy = active.request.kv_bits, self.policy
        if not policy.together:
            contended = len(self._turns) > 0
            with self._turns.queued() as turn:
                yield from turn.wait(active.cancel, unless=lambda: policy.together)
                if contended or len(self._turns) > 1:
                    # Who had to wait would not, if they were answered together.
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
            # Not here: the error would hold what it went through.
            pass
        if self._single is None:
            self._single = self._new_batch(1, None)
        active.reservation.prefilling = True
        # From its beginning; what was told comes again, and is not told again.
        return (yield from batched(self._single, reported))

    def compare_weights(self, budget: Budget, cancel: CancelToken) -> Generator[None, None, None]:
        """Look at the weights, unless that was done. See `BatchPolicy.compare_weights`."""
        yield from self.policy.compare_weights(self._probed, budget, cancel)

    def close(self) -> None:
        """Let go of the model, and of those whom it answers."""
        for batch in (self.batch, self._single, *self._quantized.values()):
            if batch is not None:
                batch.close()
        self.batch = self._single = None
        self._quantized.clear()
        self._new_batch = self._caches = self._probed = None

    def _batch_of(self, kv_bits: int | None) -> B | None:
        """Return the batch of a request; None where the library answers it in its own way.

        A model whose weights are still to be looked at has one, for one request at a time.
        """
        if not (self.policy.together or self.policy.not_compared):
            return None
        if kv_bits is None:
            return self.batch
        if kv_bits not in self._quantized:
            self._quantized[kv_bits] = self._new_batch(1, partial(self._caches, kv_bits))
        return self._quantized[kv_bits]
