"""A loaded model, as `compare_rows` uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_magic.backends.adapter import ModelAdapter
from mlx_magic.backends.batch_check.compare_rows import ScoreRecorder
from mlx_magic.backends.batching.batch import Slot
from mlx_magic.backends.batching.model_batch import ModelBatch
from mlx_magic.backends.batching.sampling import SamplingParams


class ModelProbe:
    """Access to a model without templates and images. See `ProbedModel`.

    Parameters
    ----------
    adapter : ModelAdapter
    new_batch : callable
        Takes a `ScoreRecorder`; returns a batch of two rows that samples with it.
    """

    def __init__(
        self, adapter: ModelAdapter, new_batch: Callable[[ScoreRecorder], ModelBatch]
    ) -> None:
        self._adapter = adapter
        self._new_batch = new_batch

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens."""
        return self._adapter.probe(text)

    def alone(self, tokens: list[int]) -> Any:
        """Return the logits of a text on its own."""
        return self._adapter.probe_logits(tokens)

    def batch(self, recorder: ScoreRecorder) -> tuple[ModelBatch, Callable[[list[int]], Slot]]:
        """Return a new batch, and a function that adds a text to it."""
        batch = self._new_batch(recorder)

        def add(tokens: list[int]) -> Slot:
            return batch.add(tokens, SamplingParams(), inputs=self._adapter.probe_inputs(tokens))

        return batch, add
