"""Greedy decode steps without probabilities, if all requests of a batch are greedy."""

from __future__ import annotations

from typing import Any

from mlx_magic.backends.batching.sampling import RowSampler
from mlx_magic.backends.proxy import Proxy


class GreedyModel(Proxy):
    """Proxy of a language model that implements mlx-vlm's ``fused_greedy_decode``.

    mlx-vlm's greedy batches call that method if the model has it. Otherwise they compute a
    logsumexp over the vocabulary, which on a CPU takes 1 % of a small model's step.

    Parameters
    ----------
    language_model : module
    sampler : RowSampler
        Stores the chosen tokens.
    """

    def __init__(self, language_model: Any, sampler: RowSampler) -> None:
        super().__init__(language_model)
        self._sampler = sampler

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self._part(*args, **kwargs)

    def fused_greedy_decode(self, inputs: Any, **kwargs: Any) -> Any:
        """Return the next token of each row, of shape (rows,).

        Parameters
        ----------
        inputs : mlx.core.array
            Last tokens, shape (rows, 1).
        **kwargs
            Passed to the model.
        """
        import mlx.core as mx

        output = self._part(inputs, **kwargs)
        logits = getattr(output, "logits", output)[:, -1, :]
        if logits.dtype == mx.float32:
            return self._sampler.likeliest(logits)
        # In lower precision the subtraction makes ties. Keep it, to choose as mlx-vlm does.
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return self._sampler.likeliest(logprobs)
