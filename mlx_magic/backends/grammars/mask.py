"""Masks of logits, by plain operations of MLX: they work on every device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlx_magic.backends.grammars.matcher import GrammarMatcher


def masked(logits: Any, matchers: Sequence[GrammarMatcher | None]) -> Any:
    """Rule out the tokens that the grammars of the rows do not allow.

    Parameters
    ----------
    logits : mlx.core.array
        Shape (rows, vocabulary).
    matchers : sequence of GrammarMatcher or None
        One per row; None allows every token.

    Returns
    -------
    mlx.core.array
        Of the same shape; minus infinity for tokens that are ruled out.
    """
    import mlx.core as mx
    import numpy as np

    rows = [at for at, each in enumerate(matchers) if each is not None and not each.free]
    if not rows:
        return logits
    size = logits.shape[-1]
    words = np.zeros((len(rows), (size + 31) // 32), np.uint32)
    for row, at in enumerate(rows):
        matcher = matchers[at]
        assert matcher is not None
        width = max(matcher.words, 1)
        if width <= words.shape[1]:
            matcher.fill(words[row, :width])
        else:
            # Some models have fewer logits than their tokenizer has tokens.
            whole = np.zeros(width, np.uint32)
            matcher.fill(whole)
            words[row] = whole[: words.shape[1]]
    some = len(rows) < len(matchers)
    chosen = logits[mx.array(rows)] if some else logits
    bits = (mx.array(words)[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    allowed = bits.reshape(len(rows), -1)[:, :size].astype(mx.bool_)
    chosen = mx.where(allowed, chosen, mx.array(-mx.inf, logits.dtype))
    if not some:
        return chosen
    logits[mx.array(rows)] = chosen
    return logits


def logits_processor(matcher: GrammarMatcher) -> Callable[[Any, Any], Any]:
    """Return a logits processor for the libraries' own generation, one request at a time."""
    begun = False

    def process(tokens: Any, logits: Any) -> Any:
        nonlocal begun
        if begun:
            matcher.advance(int(tokens[-1].item()))
        begun = True
        return masked(logits, [matcher])

    return process
