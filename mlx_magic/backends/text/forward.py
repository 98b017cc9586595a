"""Forward pass of a text model, as mlx-lm calls it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.forward import Inputs


class TextForward:
    """See `ForwardModel`.

    Parameters
    ----------
    model : module
        A model of mlx-lm.
    stop_tokens : collection of int
    """

    def __init__(self, model: Any, stop_tokens: Collection[int]) -> None:
        self._model = model
        self._stop_tokens = frozenset(stop_tokens)

    @property
    def stream(self) -> Any:
        """The MLX stream on which mlx-lm runs its models."""
        return upstream.TEXT_BATCHES.names.generation_stream

    def new_caches(self) -> list[Any]:
        """Return empty caches of one request. See `ForwardModel`."""
        return kv_cache.made(upstream.TEXT_CACHES, self._model)

    def is_stop_token(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return token in self._stop_tokens

    def reads_in_chunks(self, tokens: Any, caches: list[Any], inputs: Inputs) -> bool:
        """Return True: mlx-lm reads every prompt in chunks."""
        return True

    def prefill(self, tokens: Any, caches: list[Any], inputs: Inputs) -> None:
        """Read tokens that are not the last ones of their prompts."""
        self._model(tokens, cache=caches)

    def prefill_end(self, tokens: Any, caches: list[Any], inputs: Inputs, keep: int) -> Any:
        """Read the last tokens of prompts. See `ForwardModel`."""
        return self._model(tokens, cache=caches)

    def position_offsets(self, inputs: Inputs, rows: int) -> None:
        """Return None: text models count positions by tokens."""

    def decode(self, tokens: Any, caches: list[Any], offsets: Any) -> Any:
        """Read one token of each row; return logits."""
        return self._model(tokens, cache=caches)[:, -1]

    def wired(self) -> AbstractContextManager[None]:
        """Wire the weights meanwhile. See `ForwardModel`."""
        names = upstream.TEXT_BATCHES.names
        limit: AbstractContextManager[None] = names.wired_limit(self._model, [self.stream])
        return limit

    def close(self) -> None:
        """Release the model."""
        self._model = None
