"""A text model, as `compare_rows` uses it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mlx_magic.backends.batch_check.compare_rows import ScoreRecorder
from mlx_magic.backends.batching.batch import Slot
from mlx_magic.backends.batching.sampling import SamplingParams
from mlx_magic.backends.text.batch import TextBatch


class TextProbe:
    """Access to a text model. See `ProbedModel`.

    Parameters
    ----------
    model, tokenizer : object
        As mlx-lm loads them.
    new_batch : callable
        Takes a `ScoreRecorder`; returns a batch of two rows that samples with it.
    """

    def __init__(
        self, model: Any, tokenizer: Any, new_batch: Callable[[ScoreRecorder], TextBatch]
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._new_batch = new_batch

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens."""
        tokens: list[int] = self._tokenizer.encode(text)
        return tokens

    def alone(self, tokens: list[int]) -> Any:
        """Return the logits of a text on its own."""
        import mlx.core as mx
        from mlx_lm.generate import generation_stream
        from mlx_lm.models.cache import make_prompt_cache

        with mx.stream(generation_stream):
            logits = self._model(mx.array([tokens]), cache=make_prompt_cache(self._model))[0]
            mx.eval(logits)
        return logits

    def batch(self, recorder: ScoreRecorder) -> tuple[TextBatch, Callable[[list[int]], Slot]]:
        """Return a new batch, and a function that adds a text to it."""
        batch = self._new_batch(recorder)
        return batch, partial(batch.add, params=SamplingParams())
