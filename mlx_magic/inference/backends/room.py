"""Whether there is memory for a request, on this device and beside what is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlx_magic.inference.backends import device
from mlx_magic.inference.request_memory import Shape, need, require_room


class Room:
    """Looks before a request is read: what does not fit can abort the whole process on Metal.

    Parameters
    ----------
    model : str
        Its name, for messages.
    config : mapping
        The checkpoint's parsed config.json.
    chunk : int
        Tokens of a prompt that are read at once.
    forget : callable, optional
        Lets go of what is kept for reuse; tried before a request is refused.
    memory : callable
        MLX's counters.
    """

    def __init__(
        self,
        model: str,
        config: Mapping[str, Any],
        *,
        chunk: int,
        forget: Callable[[], object] = lambda: None,
        memory: Callable[[], device.Memory] = device.memory,
    ) -> None:
        self._model = model
        self._shape = Shape.of(config)
        self._chunk = chunk
        self._forget = forget
        self._memory = memory
        # Half precision, but for the CPU backend, where weights are unpacked to float32.
        self._itemsize = 2 if device.is_gpu() else 4

    def require(self, *, prompt_tokens: int, image_tokens: int, max_tokens: int) -> None:
        """Refuse a request that cannot fit.

        Parameters
        ----------
        prompt_tokens, image_tokens, max_tokens : int
            The real numbers of this request.

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
            itemsize=self._itemsize,
        )
        limit = self._memory().limit
        if not limit:
            return
        if needed.total > limit - self._memory().active:
            self._forget()
        require_room(
            self._model,
            needed,
            free=limit - self._memory().active,
            prompt_tokens=prompt_tokens,
            image_tokens=image_tokens,
            max_tokens=max_tokens,
        )
