"""Forward pass of the language model of a vision model, as mlx-vlm calls it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.forward import Inputs

STORED = "stored_positions"
"""Key of `Inputs` for positions that the model keeps in itself instead of returning them."""


class VisionForward:
    """See `ForwardModel`.

    Each call gets the inputs of the prompt uncut, as in mlx-vlm's `stream_generate`. mlx-vlm's
    own batch cuts masks to each chunk, but not the features that the masks select: from the
    second chunk on qwen3_vl would get the features of the first (mlx-vlm 0.7.10).

    Parameters
    ----------
    language_model : module
    is_stop_token : callable or None
        Whether a token ends an answer. None only if requests are never batched.
    """

    def __init__(self, language_model: Any, is_stop_token: Any) -> None:
        self._model = language_model
        self._is_stop_token = is_stop_token

    @property
    def stream(self) -> Any:
        """The MLX stream on which mlx-vlm runs its models."""
        return upstream.VISION_BATCHES.names.generation_stream

    def new_caches(self) -> list[Any]:
        """Return empty caches of one request. See `ForwardModel`."""
        return kv_cache.made(upstream.VISION_CACHES, self._model)

    def is_stop_token(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self._is_stop_token(token))

    def reads_in_chunks(self, tokens: Any, caches: list[Any], inputs: Inputs) -> bool:
        """Whether a prompt may be read in chunks, as the model's own policy says."""
        extra = {k: value for k, value in inputs.items() if k not in ("inputs_embeds", STORED)}
        return bool(
            upstream.VISION_BATCHES.names._chunked_prefill_enabled(
                self._model,
                input_ids=tokens,
                inputs_embeds=inputs.get("inputs_embeds"),
                prompt_cache=caches,
                prefill_kwargs=extra,
            )
        )

    def prefill(self, tokens: Any, caches: list[Any], inputs: Inputs) -> None:
        """Read tokens that are not the last ones of their prompts."""
        self._call(tokens, caches, inputs, n_to_process=tokens.shape[1])

    def prefill_end(self, tokens: Any, caches: list[Any], inputs: Inputs, keep: int) -> Any:
        """Read the last tokens of prompts. See `ForwardModel`."""
        return self._call(tokens, caches, inputs, logits_to_keep=keep).logits

    def read_whole(self, tokens: Any, inputs: Inputs) -> Any:
        """Read prompts in one call; return all logits that the model gives."""
        return self._call(tokens, self.new_caches(), inputs).logits

    def position_offsets(self, inputs: Inputs, rows: int) -> Any:
        """Return what rotary positions in three parts add to the count of tokens."""
        import mlx.core as mx

        offsets = inputs.get("rope_deltas")
        if offsets is None and STORED in inputs:
            offsets = inputs[STORED].get(upstream.ROPE_DELTAS)
        elif offsets is None:
            if not hasattr(self._model, upstream.ROPE_DELTAS):
                return None
            offsets = getattr(self._model, upstream.ROPE_DELTAS)
        if offsets is None:
            return mx.zeros((rows, 1), dtype=mx.int32)
        return mx.broadcast_to(offsets.reshape(-1, 1)[:rows], (rows, 1))

    def decode(self, tokens: Any, caches: list[Any], offsets: Any) -> Any:
        """Read one token of each row; return logits."""
        extra = {} if offsets is None else {"rope_deltas": offsets}
        inner = getattr(self._model, "language_model", self._model)
        if offsets is not None:
            # Some models look at those that they have stored, even if they are handed others.
            upstream.restore_positions(inner, {upstream.ROPE_DELTAS: offsets})
        return inner(tokens, cache=caches, **extra).logits[:, -1]

    def _call(self, tokens: Any, caches: list[Any], inputs: Inputs, **options: Any) -> Any:
        """Read tokens, with the positions of this prompt in the model, which may update them."""
        stored = inputs.get(STORED)
        if stored is None:
            return self._model(tokens, cache=caches, **options, **inputs)
        given = {key: value for key, value in inputs.items() if key != STORED}
        upstream.restore_positions(self._model, stored)
        output = self._model(tokens, cache=caches, **options, **given)
        stored.update(upstream.stored_positions(self._model))
        return output

    def wired(self) -> AbstractContextManager[None]:
        """Wire the weights meanwhile. See `ForwardModel`."""
        names = upstream.VISION_BATCHES.names
        limit: AbstractContextManager[None] = names.wired_limit(self._model, [self.stream])
        return limit

    def close(self) -> None:
        """Release the model."""
        self._model = None
