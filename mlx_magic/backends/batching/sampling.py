"""Drawing the next token of every request in a batch, each in its own way."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_magic.engine.request import Sampling
from mlx_magic.errors import GenerationError

LogitsProcessor = Callable[[Any, Any], Any]
"""Takes the tokens so far and logits of shape (1, vocabulary); returns such logits."""

BAD = -1
"""In place of a token where a request's logits are no numbers."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are drawn.

    Attributes
    ----------
    temperature : float
        0 is greedy.
    top_p, min_p : float
        1 and 0 are off.
    top_k : int
        0 is off.
    seed : int
        Each token's randomness comes from this and its place alone: not from
        what else is in the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0


def processors(sampling: Sampling, prompt_tokens: int) -> list[LogitsProcessor]:
    """Return what changes a request's logits before a token is drawn.

    Parameters
    ----------
    sampling : Sampling
    prompt_tokens : int
        How many of the tokens that a processor is given are the prompt's.
    """
    penalty = sampling.repetition_penalty or 1.0
    return [] if penalty == 1.0 else [repetition_penalty(penalty, prompt_tokens)]


def repetition_penalty(penalty: float, prompt_tokens: int) -> LogitsProcessor:
    """Make what an answer has written before less likely to come again.

    Only the answer counts, not its prompt: of that, more or less may have been read before.

    Parameters
    ----------
    penalty : float
        1 is off.
    prompt_tokens : int
        How many of the tokens that it is given are the prompt's.
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
    """Let a processor fail for its own request alone.

    Parameters
    ----------
    processor : callable
    failed : callable
        Takes what it raised; it is not called again.
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
    """Refuse to go on where the logits were no numbers.

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
    """Return a seed that nobody has used."""
    return secrets.randbits(48)


class RowSampler:
    """Draws for a batch whose rows are named in `rows` before each call.

    It has the interface that mlx-vlm's batches look for (``sample_target``), since a
    plain sampler there is one for all rows.

    Attributes
    ----------
    rows : list of int
        Uid of each row of the logits that come next.
    draws : dict of int to SamplingParams
        By uid.
    drawn : mlx.core.array or None
        What was drawn last, of shape (rows,).
    """

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.draws: dict[int, SamplingParams] = {}
        self.drawn: Any = None
        self._bad: Any = None

    def __call__(self, logprobs: Any) -> Any:
        """Draw the first token of each row."""
        return self.sample_target(logprobs, row_ids=[], positions=[0] * logprobs.shape[0])

    def sample_target(
        self, logprobs: Any, *, row_ids: Sequence[int], positions: Sequence[int]
    ) -> Any:
        """Draw a token for each row.

        Parameters
        ----------
        logprobs : mlx.core.array
            Shape (rows, vocabulary).
        row_ids : sequence of int
            Not looked at.
        positions : sequence of int
            How many tokens each row has written.

        Returns
        -------
        mlx.core.array
            Shape (rows,), int32; `BAD` where the logits are no numbers.
        """
        import mlx.core as mx

        draws = [self.draws[uid] for uid in self.rows]
        sampled_rows = [at for at, params in enumerate(draws) if params.temperature > 0]
        if not sampled_rows:
            return self.likeliest(logprobs)
        tokens = sampled = _sampled(
            logprobs[mx.array(sampled_rows)] if len(sampled_rows) < len(draws) else logprobs,
            [draws[at] for at in sampled_rows],
            [positions[at] for at in sampled_rows],
        )
        if len(sampled_rows) < len(draws):
            tokens = mx.argmax(logprobs, axis=-1).astype(mx.int32)
            tokens[mx.array(sampled_rows)] = sampled
        return self._checked(tokens, logprobs)

    def likeliest(self, scores: Any) -> Any:
        """Take the likeliest token of each row.

        Parameters
        ----------
        scores : mlx.core.array
            Logits or their log-probabilities, shape (rows, vocabulary).

        Returns
        -------
        mlx.core.array
            Shape (rows,), int32; `BAD` where the logits are no numbers.
        """
        import mlx.core as mx

        # A view: one operation less than a cast.
        return self._checked(mx.argmax(scores, axis=-1).view(mx.int32), scores)

    def is_greedy(self, uids: Sequence[int]) -> bool:
        """Say whether all of these take the likeliest token."""
        return all(self.draws[uid].temperature <= 0 for uid in uids)

    def _checked(self, tokens: Any, scores: Any) -> Any:
        """Keep what was drawn; `BAD` where the scores of its row are no numbers."""
        import mlx.core as mx

        if self._bad is None:
            self._bad = mx.array(BAD, mx.int32)
        # What is none makes the maximum none (read in mlx 0.32's three backends), and an infinite
        # one is none less itself. A token that a model rules out may be at minus infinity.
        most = mx.max(scores, axis=-1)
        self.drawn = mx.where(mx.isnan(most - most), self._bad, tokens)
        return self.drawn


def _sampled(logprobs: Any, draws: Sequence[SamplingParams], positions: Sequence[int]) -> Any:
    """Draw from what temperature, top-k, top-p and min-p leave, in that order."""
    import mlx.core as mx

    temperatures = mx.array([params.temperature for params in draws])[:, None]
    scaled = logprobs.astype(mx.float32) / temperatures
    scaled = scaled - mx.logsumexp(scaled, axis=-1, keepdims=True)
    size = scaled.shape[-1]
    least = mx.full((len(draws), 1), -mx.inf)
    if any(params.top_k or params.top_p < 1 for params in draws):
        # Descending. The least likely token that is left sets the limit.
        ordered = -mx.sort(-scaled, axis=-1)
        ks = mx.array([min(params.top_k or size, size) - 1 for params in draws])[:, None]
        least = mx.take_along_axis(ordered, ks, axis=-1)
        kept = mx.where(ordered >= least, mx.exp(ordered), 0.0)
        before = (mx.cumsum(kept, axis=-1) - kept) / mx.sum(kept, axis=-1, keepdims=True)
        top_ps = mx.array([params.top_p for params in draws])[:, None]
        # A token stays while those before it have not yet filled the nucleus.
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

    # Splitmix: neighboring places and seeds must not draw alike.
    mixed = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed ^= mixed >> 31
    mixed = (mixed * 0x94D049BB133111EB) & (2**64 - 1)
    return mx.random.key(mixed ^ (mixed >> 29))
