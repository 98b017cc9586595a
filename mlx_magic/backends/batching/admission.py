"""Memory admission: a request starts only if it fits into the free memory.

Requests of all models wait in one FIFO queue.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlx_magic.backends.batching.memory_estimate import (
    BLOCK,
    ModelDimensions,
    RequestMemory,
    estimate_request,
    require_memory,
)
from mlx_magic.backends.device import platform
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
    # Prompts that share a prefill share its chunk, which short ones fill together only.
    chunk = max((max(need.reading, need.joint_reading) for need in prefilling), default=0)
    chunk = min(chunk, sum(need.reading for need in prefilling))
    # One array of logits for all prompts of a prefill.
    logits = max((need.logits for need in prefilling), default=0)
    return max(cache, limits.held()) + chunk + logits


SHARED = AdmissionQueue()
"""The queue of this process, which has one MLX."""


class MemoryAdmission:
    """Admits a request before its prefill: on Metal, running out of memory can abort the process.

    Parameters
    ----------
    model : str
        Name of the model, for messages.
    config : mapping
        The checkpoint's parsed config.json.
    chunk : int
        Prompt tokens per prefill chunk.
    at_once : int
        Tokens of all prompts in a batch that one call reads together with the last token; 0 if
        the last token has a call of its own.
    forget : callable, optional
        Clears the model's caches. Called before a request has to wait or is refused.
    memory : callable
        Returns MLX's memory counters.
    queue : AdmissionQueue
        Queue of all models that share this memory.
    """

    def __init__(
        self,
        model: str,
        config: Mapping[str, Any],
        *,
        chunk: int,
        at_once: int = 0,
        forget: Callable[[], object] = lambda: None,
        memory: Callable[[], platform.Memory] = platform.memory,
        queue: AdmissionQueue = SHARED,
    ) -> None:
        self._model = model
        self._shape = ModelDimensions.of(config)
        self._chunk = chunk
        self._at_once = at_once
        self._forget = forget
        self._memory = memory
        self._queue = queue
        # Half precision; on the CPU backend weights are unpacked to float32.
        self._itemsize = 2 if platform.is_gpu() else 4

    @property
    def shape(self) -> ModelDimensions:
        """Dimensions of the model that decide how much memory a token takes."""
        return self._shape

    def rows(self, *, prompt_tokens: int, max_tokens: int, most: int) -> int:
        """Return how many rows after one prompt fit into the memory that is free now.

        Rows take at most half of it, so that other requests can start.

        Parameters
        ----------
        prompt_tokens, max_tokens : int
            Tokens of the prompt, and of the longest row after it.
        most : int

        Returns
        -------
        int
            From 1 to `most`.
        """
        now = self._memory()
        row = self._shape.kv_bytes(self._itemsize) * (prompt_tokens + max_tokens + BLOCK)
        if not now.limit or not row:
            return most
        return max(1, min(most, (now.limit - now.active) // 2 // row - 1))

    def require(
        self,
        *,
        prompt_tokens: int,
        image_tokens: int,
        max_tokens: int,
        kv_bits: int | None = None,
        rows: int = 1,
        positions: int = 0,
    ) -> RequestMemory:
        """Refuse a request that would not fit even if no other request were running.

        Parameters
        ----------
        prompt_tokens, image_tokens, max_tokens : int
            Exact counts of this request.
        kv_bits : {4, 8} or None
            Bits of a quantized KV cache.
        rows, positions : int
            See `estimate_request`.

        Returns
        -------
        RequestMemory
            Bytes that the request will take at most.

        Raises
        ------
        MemoryBudgetError
            The request needs more than is free. The message names the numbers and remedies.
        """
        needed = estimate_request(
            self._shape,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            chunk=self._chunk,
            at_once=self._at_once,
            itemsize=self._itemsize,
            kv_bits=kv_bits,
            rows=rows,
            positions=positions,
        )
        if not self._memory().limit:
            return needed
        if needed.total > self._free():
            self._forget()
        require_memory(
            self._model,
            needed,
            free=self._free(),
            prompt_tokens=prompt_tokens,
            image_tokens=image_tokens,
            max_tokens=max_tokens,
            may_quantize=kv_bits is None and self._shape.kv_group > 0,
        )
        return needed

    def reserve(
        self,
        limits: BatchLimits,
        *,
        prompt_tokens: int,
        image_tokens: int,
        max_tokens: int,
        kv_bits: int | None = None,
        rows: int = 1,
        positions: int = 0,
        cancel: CancelToken,
        on_wait: Callable[[], None],
    ) -> Generator[None, None, AbstractContextManager[Reservation]]:
        """Wait until a request fits beside the running ones of all models.

        Parameters
        ----------
        limits : BatchLimits
            Limits of the batch that will answer it.
        prompt_tokens, image_tokens, max_tokens, kv_bits, rows, positions : int
            See `require`.
        cancel : CancelToken
        on_wait : callable
            Called once, if the request has to wait.

        Returns
        -------
        context manager
            Holds the reservation until the answer has ended.

        Raises
        ------
        MemoryBudgetError
            The request would not fit even alone.
        Cancelled
            While the request waits.
        """
        require = partial(
            self.require,
            prompt_tokens=prompt_tokens,
            image_tokens=image_tokens,
            max_tokens=max_tokens,
            kv_bits=kv_bits,
            rows=rows,
            positions=positions,
        )

        def admits(reservation: Reservation) -> bool:
            if not self._queue.admitted:
                # A model may have been loaded while the request waited.
                require()
                return True
            return self._fits(reservation)

        reservation = Reservation(limits, require())
        return (yield from self._queue.enter(reservation, admits, cancel, on_wait))

    def _fits(self, reservation: Reservation) -> bool:
        if not self._memory().limit or self._queue.committed(reservation) <= self._free():
            return True
        if not reservation.forgot:
            reservation.forgot = True
            self._forget()
        return self._queue.committed(reservation) <= self._free()

    def _free(self) -> int:
        """Bytes for requests if none were running now."""
        now = self._memory()
        return now.limit - now.active + self._queue.held()
