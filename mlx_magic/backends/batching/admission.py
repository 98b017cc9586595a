"""Whether there is memory for a request, on this device and beside what is there."""

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
from mlx_magic.backends.batching.memory_estimate import Need, Shape, need, require_memory
from mlx_magic.backends.device import platform
from mlx_magic.cancellation import CancelToken


class MemoryAdmission:
    """Looks before a request is read: what does not fit can abort the whole process on Metal.

    Parameters
    ----------
    model : str
        Its name, for messages.
    config : mapping
        The checkpoint's parsed config.json.
    chunk : int
        Tokens of a prompt that are read at once.
    at_once : int
        Tokens, of all prompts that are read together, that are read in one call with the last
        one; 0 where that is read by itself.
    forget : callable, optional
        Lets go of what is kept for reuse; tried before a request has to wait, or is refused.
    memory : callable
        MLX's counters.
    queue : AdmissionQueue
        Where the requests of all models wait that share this memory.
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
        self._shape = Shape.of(config)
        self._chunk = chunk
        self._at_once = at_once
        self._forget = forget
        self._memory = memory
        self._queue = queue
        # Half precision, but for the CPU backend, where weights are unpacked to float32.
        self._itemsize = 2 if platform.is_gpu() else 4

    @property
    def shape(self) -> Shape:
        """What of the model decides how much memory a token takes."""
        return self._shape

    def require(
        self, *, prompt_tokens: int, image_tokens: int, max_tokens: int, kv_bits: int | None = None
    ) -> Need:
        """Refuse a request that could not fit even if no other answer were written.

        Parameters
        ----------
        prompt_tokens, image_tokens, max_tokens : int
            The real numbers of this request.
        kv_bits : {4, 8} or None
            What its keys and values are quantized to.

        Returns
        -------
        Need
            What it will take.

        Raises
        ------
        MemoryBudgetError
            With the numbers, and what would help.
        """
        needed = need(
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
        """Wait until a request fits beside those that are answered, of whatever model.

        Parameters
        ----------
        limits : BatchLimits
            Beside whom it is answered.
        prompt_tokens, image_tokens, max_tokens, kv_bits : int
            See `require`.
        cancel : CancelToken
        on_wait : callable
            Called once, if it has to wait.

        Returns
        -------
        context manager
            Keeps its place until the answer has ended.

        Raises
        ------
        MemoryBudgetError
            Where it could not fit even alone.
        Cancelled
            While it waits.
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
                # A model may have been loaded while it waited.
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
        """Bytes that there would be for answers, if none were written now."""
        now = self._memory()
        return now.limit - now.active + self._queue.held()
