"""Memory admission: a request starts only if it fits into the free memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from mlx_magic.backends.batching.admission_queue import (
    SHARED,
    AdmissionQueue,
    BatchLimits,
    Reservation,
)
from mlx_magic.backends.batching.memory_estimate import (
    ModelDimensions,
    RequestMemory,
    estimate_request,
    require_memory,
)
from mlx_magic.backends.device import platform
from mlx_magic.cancellation import CancelToken


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

    def require(
        self, *, prompt_tokens: int, image_tokens: int, max_tokens: int, kv_bits: int | None = None
    ) -> RequestMemory:
        """Refuse a request that would not fit even if no other request were running.

        Parameters
        ----------
        prompt_tokens, image_tokens, max_tokens : int
            Exact counts of this request.
        kv_bits : {4, 8} or None
            Bits of a quantized KV cache.

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
        cancel: CancelToken,
        on_wait: Callable[[], None],
    ) -> Generator[None, None, AbstractContextManager[Reservation]]:
        """Wait until a request fits beside the running ones of all models.

        Parameters
        ----------
        limits : BatchLimits
            Limits of the batch that will answer it.
        prompt_tokens, image_tokens, max_tokens, kv_bits : int
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
