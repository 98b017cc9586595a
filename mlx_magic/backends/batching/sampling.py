"""Sampling of the next tokens of a batch, with parameters per request."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_magic.engine.request import Sampling
from mlx_magic.errors import GenerationError

LogitsProcessor = Callable[[Any, Any], Any]
"""Takes the tokens so far and logits of shape (1, vocabulary); returns such logits."""

BAD = -1
"""Stands for the token of a request whose logits are NaN or infinite."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request.

    Attributes
    ----------
    temperature : float
        0 is greedy.
    top_p, min_p : float
        1 and 0 are off.
    top_k : int
        0 is off.
    seed : int
        A token's randomness depends on this and its position alone, not on the rest of the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0


def processors(sampling: Sampling, prompt_tokens: int = 0) -> list[LogitsProcessor]:
    """Return the logits processors of a request.

    Parameters
    ----------
    sampling : Sampling
    prompt_tokens : int
        How many of the tokens that a processor gets belong to the prompt.
    """
    penalty = sampling.repetition_penalty or 1.0
    return [] if penalty == 1.0 else [repetition_penalty(penalty, prompt_tokens)]


def repetition_penalty(penalty: float, prompt_tokens: int) -> LogitsProcessor:
    """Return a logits processor that penalizes tokens which the answer already has.

    Prompt tokens are not penalized: how many of them the processor gets depends on the cached
    prefix.

    Parameters
    ----------
    penalty : float
        1 is off.
    prompt_tokens : int
        How many of the tokens that the processor gets belong to the prompt.
    """

    def process(tokens: Any, logits: Any) -> Any:
        import mlx.core as mx

        generated = tokens[prompt_tokens:]
        if not generated.size:
            return logits
        scores = logits[:, generated]
        logits[:, generated] = mx.where(scores < 0, scores * penalty, scores / penalty)
        return logits

    return process


def guarded(processor: LogitsProcessor, failed: Callable[[Exception], None]) -> LogitsProcessor:
    """Wrap a logits processor so that its errors fail its own request alone.

    Parameters
    ----------
    processor : callable
        Not called again after an error.
    failed : callable
        Takes the error.
    """
    broken = False

    def process(tokens: Any, logits: Any) -> Any:
        nonlocal broken
        if broken:
            return logits
        try:
            return processor(tokens, logits)
        except Exception as error:
            broken = True
            failed(error)
            return logits

    return process


def require_number(token: int, model: str) -> None:
    """Refuse to go on after `BAD`, which stands for invalid logits.

    Raises
    ------
    GenerationError
    """
    if token == BAD:
        raise GenerationError(
            f"{model}: its numbers overflowed while it answered: ask for less at once, or "
            "use a checkpoint of higher precision.",
            model=model,
        )


def fresh_seed() -> int:
    """Return a random seed."""
    return secrets.randbits(48)


def sample_rows(logits: Any, draws: Sequence[SamplingParams], positions: Sequence[int]) -> Any:
    """Sample a token for each row, with the row's own parameters.

    Parameters
    ----------
    logits : mlx.core.array
        Shape (rows, vocabulary).
    draws : sequence of SamplingParams
        One per row.
    positions : sequence of int
        Number of tokens that were sampled for each row before.

    Returns
    -------
    mlx.core.array
        Shape (rows,), int32; `BAD` for invalid logits.
    """
    import mlx.core as mx

    return sample_normalized(
        logits - mx.logsumexp(logits, axis=-1, keepdims=True), draws, positions
    )


def sample_normalized(
    logprobs: Any, draws: Sequence[SamplingParams], positions: Sequence[int]
) -> Any:
    """Sample a token for each row from log-probabilities. See `sample_rows`."""
    import mlx.core as mx

    sampled_rows = [at for at, params in enumerate(draws) if params.temperature > 0]
    # A view saves the operation of a cast.
    tokens = mx.argmax(logprobs, axis=-1).view(mx.int32)
    if sampled_rows:
        sampled = _sampled(
            logprobs[mx.array(sampled_rows)] if len(sampled_rows) < len(draws) else logprobs,
            [draws[at] for at in sampled_rows],
            [positions[at] for at in sampled_rows],
        )
        if len(sampled_rows) < len(draws):
            tokens[mx.array(sampled_rows)] = sampled
        else:
            tokens = sampled
    return _checked(tokens, logprobs)


def sampler_of_one(params: SamplingParams) -> Callable[[Any], Any]:
    """Return a sampler for mlx-lm's own generation, which passes no positions."""
    positions = itertools.count()
    return lambda logprobs: sample_normalized(logprobs, [params], [next(positions)])


def _checked(tokens: Any, scores: Any) -> Any:
    """Return the tokens, with `BAD` for rows whose scores are invalid."""
    import mlx.core as mx

    # A NaN makes the maximum NaN (read in mlx 0.32's three backends), and an infinite maximum
    # minus itself is NaN. Minus infinity is valid: models rule out tokens with it.
    most = mx.max(scores, axis=-1)
    return mx.where(mx.isnan(most - most), mx.array(BAD, mx.int32), tokens)


def _sampled(logprobs: Any, draws: Sequence[SamplingParams], positions: Sequence[int]) -> Any:
    """Sample from what temperature, top-k, top-p and min-p leave, in that order."""
    import mlx.core as mx

    temperatures = mx.array([params.temperature for params in draws])[:, None]
    scaled = logprobs.astype(mx.float32) / temperatures
    scaled = scaled - mx.logsumexp(scaled, axis=-1, keepdims=True)
    size = scaled.shape[-1]
    least = mx.full((len(draws), 1), -mx.inf)
    if any(params.top_k or params.top_p < 1 for params in draws):
        # Descending. The least likely token that is kept sets the threshold.
        ordered = -mx.sort(-scaled, axis=-1)
        ks = mx.array([min(params.top_k or size, size) - 1 for params in draws])[:, None]
        least = mx.take_along_axis(ordered, ks, axis=-1)
        kept = mx.where(ordered >= least, mx.exp(ordered), 0.0)
        before = (mx.cumsum(kept, axis=-1) - kept) / mx.sum(kept, axis=-1, keepdims=True)
        top_ps = mx.array([params.top_p for params in draws])[:, None]
        # A token is kept while the tokens before it have not filled the nucleus.
        count = mx.sum(mx.logical_and(before < top_ps, ordered >= least), axis=-1, keepdims=True)
        nucleus = mx.take_along_axis(ordered, mx.maximum(count - 1, 0), axis=-1)
        least = mx.maximum(least, nucleus)
    if any(params.min_p for params in draws):
        floors = mx.array([params.min_p for params in draws])[:, None]
        least = mx.maximum(least, mx.max(scaled, axis=-1, keepdims=True) + mx.log(floors))
    left = mx.where(scaled >= least, scaled, -mx.inf)
    noise = mx.stack(
        [
            mx.random.gumbel(shape=(size,), key=_key(params.seed, position))
            for params, position in zip(draws, positions, strict=True)
        ]
    )
    return mx.argmax(left + noise, axis=-1).astype(mx.int32)


def _key(seed: int, position: int) -> Any:
    import mlx.core as mx

    # Splitmix: neighboring positions and seeds must not give similar keys.
    mixed = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed ^= mixed >> 31
    mixed = (mixed * 0x94D049BB133111EB) & (2**64 - 1)
    return mx.random.key(mixed ^ (mixed >> 29))
