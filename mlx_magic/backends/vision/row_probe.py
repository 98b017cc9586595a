"""The language model of a vision model, as `compare_rows` uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_magic.backends.batch_check.compare_rows import ScoreRecorder
from mlx_magic.backends.batching.batch import Slot
from mlx_magic.backends.batching.sampling import SamplingParams
from mlx_magic.backends.vision.batch import VisionBatch


class VisionProbe:
    """Text-only access to a vision model. See `ProbedModel`.

    Parameters
    ----------
    model, processor : object
        As mlx-vlm loads them.
    new_batch : callable
        Takes a `ScoreRecorder`; returns a batch of two rows that samples with it.
    """

    def __init__(
        self, model: Any, processor: Any, new_batch: Callable[[ScoreRecorder], VisionBatch]
    ) -> None:
        self._model = model
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._new_batch = new_batch

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens."""
        tokens: list[int] = self._tokenizer.encode(text)
        return tokens

    def alone(self, tokens: list[int]) -> Any:
        """Return the logits of a text on its own."""
        import mlx.core as mx
        from mlx_vlm.generate.common import generation_stream
        from mlx_vlm.models.cache import make_prompt_cache

        embeds = self._embeds(tokens)
        language_model = self._model.language_model
        with mx.stream(generation_stream):
            caches = make_prompt_cache(language_model)
            logits = language_model(mx.array([tokens]), cache=caches, **embeds).logits[0]
            mx.eval(logits)
        return logits

    def batch(self, recorder: ScoreRecorder) -> tuple[VisionBatch, Callable[[list[int]], Slot]]:
        """Return a new batch, and a function that adds a text to it."""
        batch = self._new_batch(recorder)

        def add(tokens: list[int]) -> Slot:
            return batch.add(
                tokens, self._embeds(tokens), max_tokens=len(tokens) * 8, params=SamplingParams()
            )

        return batch, add

    def _embeds(self, tokens: list[int]) -> dict[str, Any]:
        """Return the language model's inputs for a text without images."""
        import mlx.core as mx
        from mlx_vlm.generate.common import generation_stream

        with mx.stream(generation_stream):
            output = self._model.get_input_embeddings(mx.array([tokens]), None)
            mx.eval(output.inputs_embeds)
        return {key: value for key, value in output.to_dict().items() if value is not None}
