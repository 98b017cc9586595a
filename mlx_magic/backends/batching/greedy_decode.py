"""Greedy answers need no probabilities: where all are greedy, a step leaves them out."""

from __future__ import annotations

from typing import Any

from mlx_magic.backends.batching.sampling import RowSampler
from mlx_magic.backends.proxy import Proxy


class GreedyModel(Proxy):
    """Stands in front of a language model, and picks the next tokens where mlx-vlm asks it to.

    Its batches ask a model that has ``fused_greedy_decode``, where they are greedy. Else they
    take the logarithm of the sum of all exponentials, which on a CPU is a hundredth of a small
    model's step.

    Parameters
    ----------
    language_model : module
    sampler : RowSampler
        Learns what was picked.
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
            The last ones, of shape (rows, 1).
        **kwargs
            For the model.
        """
        import mlx.core as mx

        output = self._part(inputs, **kwargs)
        logits = getattr(output, "logits", output)[:, -1, :]
        if logits.dtype == mx.float32:
            return self._sampler.likeliest(logits)
        # In lower precision the subtraction makes ties, and so another choice: mlx-vlm's.
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return self._sampler.likeliest(logprobs)
