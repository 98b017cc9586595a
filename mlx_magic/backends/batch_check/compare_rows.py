"""One comparison with the loaded weights: two batched rows must give the same logits as alone.

The table in together.json was made with tiny checkpoints. This checks that it holds for the
weights that were loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlx_magic.backends.adapter import ModelAdapter
from mlx_magic.backends.batching.batch import Batch, JointPrefill, Slot
from mlx_magic.backends.batching.model_batch import ModelBatch
from mlx_magic.backends.batching.sampling import SamplingParams
from mlx_magic.cancellation import CancelToken

TEXTS = (
    "The picture shows a small red house with two windows beside a tall green tree.",
    "There are four blue boats on the lake, and none of them has a sail.",
)
LENGTHS = (7, 4)
"""Prompt tokens of the two rows; they differ, so that one row is padded."""

DECODED_TOKENS = 4
"""Tokens after each prompt, one per decode step."""

REMAINING_CALLS = 4
"""Approximate calls of the model after those of each row alone."""

SECONDS, SHARE = 0.3, 0.05
"""Time limit at a load: these seconds, or this share of the load's time if that is more."""

TOLERANCE = 5e-3
TOLERANCE_HALF = 0.15
"""Maximum relative difference of the logits, in float32 and in half precision.

Measured with tiny checkpoints of 40 architectures: rounding makes up to 1e-5 in float32 and 2e-2
in bfloat16; a row that attends to padding, or is at a wrong position, 0.1 and more.
"""


class ScoreRecorder:
    """A sampler that records the scores of each row, and returns given tokens.

    Parameters
    ----------
    forced_tokens : sequence of sequence of int
        The tokens that follow each row's prompt.

    Attributes
    ----------
    seen : list of list
        Log-probabilities of each row after its prompt and after each further token.
    has_all_rows : bool
        Whether the last call had all rows.
    """

    def __init__(self, forced_tokens: Sequence[Sequence[int]]) -> None:
        self._forced_tokens = forced_tokens
        self.seen: list[list[Any]] = [[] for _ in forced_tokens]
        self.has_all_rows = False

    def __call__(self, logits: Any, slots: Sequence[Slot]) -> Any:
        """Record the scores; return the given tokens. See `decode.Sampler`."""
        import mlx.core as mx

        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        tokens = []
        for at, slot in enumerate(slots):
            forced_tokens = self._forced_tokens[slot.uid]
            tokens.append(forced_tokens[min(slot.position, len(forced_tokens) - 1)])
            self.seen[slot.uid].append(logprobs[at])
        self.has_all_rows = len(slots) == len(self._forced_tokens)
        return mx.array(tokens, dtype=mx.int32)


class ProbedModel(Protocol):
    """A model that can be compared, alone and batched."""

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens."""

    def alone(self, tokens: list[int]) -> Any:
        """Return the logits of a text on its own, shape (tokens, vocabulary).

        Of the last tokens only, if the model returns no others.
        """

    def batch(
        self, recorder: ScoreRecorder, joint: JointPrefill
    ) -> tuple[Batch, Callable[[list[int]], Slot]]:
        """Return a new batch whose prompts share a prefill so, and a function that adds a row."""


@dataclass(slots=True)
class Budget:
    """Time limit of a comparison.

    Attributes
    ----------
    seconds : float or None
        None is no limit.
    clock : callable
        Seconds, monotonic.
    """

    seconds: float | None
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of_load(cls, took: float) -> Budget:
        """Return the limit after a load that took this many seconds."""
        return cls(max(SECONDS, SHARE * took))


def rows_agree(
    probed: ProbedModel,
    budget: Budget,
    cancel: CancelToken,
    *,
    joint: JointPrefill = "padded",
) -> Generator[None, None, bool | None]:
    """Compare two batched rows with each row alone; one call of the model per slice.

    Parameters
    ----------
    probed : ProbedModel
    budget : Budget
    cancel : CancelToken
    joint : {"alone", "equal", "padded"}
        How the rows share a prefill; with ``"equal"`` they are of one length.

    Returns
    -------
    bool or None
        Whether they agree; None if the comparison would exceed its budget.

    Raises
    ------
    Cancelled
    """
    prompts = LENGTHS[:1] * len(LENGTHS) if joint == "equal" else LENGTHS
    lengths = [n + DECODED_TOKENS for n in prompts]
    rows = [_cut(probed.encode(text), n) for text, n in zip(TEXTS, lengths, strict=True)]
    began = budget.clock()
    expected, durations = [], list[float]()
    for row in rows:
        cancel.checkpoint()
        # The whole row in one call.
        expected.append(probed.alone(row))
        durations.append(budget.clock() - began - sum(durations))
        # The minimum, since the first call may be slower.
        remaining = min(durations) * REMAINING_CALLS if len(durations) == len(rows) else 0
        if budget.seconds is not None and sum(durations) + remaining > budget.seconds:
            return None
        yield
    seen = yield from _recorded_scores(probed, rows, cancel, prompts=prompts, joint=joint)
    if seen is None:
        return False
    # Indexed from the end: some models return the last token's logits only.
    whole = [
        [
            logits[at - len(row)] if len(row) - at <= logits.shape[0] else None
            for at in range(n - 1, len(row))
        ]
        for row, n, logits in zip(rows, prompts, expected, strict=True)
    ]
    if _agree(seen, whole):
        return True
    # Some models (gemma3n) give other logits for other chunks: compare with the same chunks.
    cut = []
    for at in range(len(rows)):
        single = yield from _recorded_scores(
            probed, rows, cancel, prompts=prompts, only=at, count=len(seen[at])
        )
        cut.append(single[at] if single is not None else [])
    return _agree(seen, cut)


def _recorded_scores(
    probed: ProbedModel,
    rows: list[list[int]],
    cancel: CancelToken,
    *,
    prompts: Sequence[int],
    joint: JointPrefill = "alone",
    only: int | None = None,
    count: int = 2,
) -> Generator[None, None, list[list[Any]] | None]:
    """Run rows in a new batch; return each row's scores, or None if no step had all rows.

    With `only`, run that row alone, until there are `count` scores.
    """
    chosen = range(len(rows)) if only is None else (only,)
    recorder = ScoreRecorder([rows[at][prompts[at] :] for at in chosen])
    batch, add = probed.batch(recorder, joint)
    try:
        slots = [add(rows[at][: prompts[at]]) for at in chosen]
        for _ in range(DECODED_TOKENS + len(rows) + 1):
            cancel.checkpoint()
            batch.advance()
            failed = next((slot.error for slot in slots if slot.error is not None), None)
            if failed is not None:
                raise failed
            yield
            if recorder.has_all_rows and all(len(seen) >= count for seen in recorder.seen):
                found = dict(zip(chosen, recorder.seen, strict=True))
                return [found.get(at, []) for at in range(len(rows))]
        return None
    finally:
        batch.close()
        # The batch is part of a reference cycle, and would hold the arrays until it is collected.
        recorder.seen = []


def _agree(seen: list[list[Any]], expected: list[list[Any]]) -> bool:
    import mlx.core as mx

    distances = [
        _distance(score, other)
        for scores, others in zip(seen, expected, strict=True)
        for score, other in zip(scores, others, strict=False)
        if other is not None
    ]
    if not distances:
        return False
    limit = TOLERANCE_HALF if seen[0][0].dtype != mx.float32 else TOLERANCE
    worst: Any = mx.max(mx.stack(distances)).item()
    # In this form NaN counts as a difference.
    return bool(worst <= limit)


def _distance(scores: Any, logits: Any) -> Any:
    """Return the difference of two rows of scores, relative to their spread."""
    import mlx.core as mx

    logits = logits.astype(mx.float32)
    one = scores.astype(mx.float32)
    other = logits - mx.logsumexp(logits)
    spread = mx.linalg.norm(other - mx.mean(other))
    return mx.linalg.norm(one - other) / mx.maximum(spread, 1e-6)


def _cut(tokens: list[int], length: int) -> list[int]:
    """Return `length` tokens; a short text is repeated."""
    tokens = tokens or [0]
    return (tokens * (length // len(tokens) + 1))[:length]


class ModelProbe:
    """Access to a model without templates and images. See `ProbedModel`.

    Parameters
    ----------
    adapter : ModelAdapter
    new_batch : callable
        Takes a `ScoreRecorder` and how prompts share a prefill; returns a batch of two rows that
        samples with it.
    """

    def __init__(
        self, adapter: ModelAdapter, new_batch: Callable[[ScoreRecorder, JointPrefill], ModelBatch]
    ) -> None:
        self._adapter = adapter
        self._new_batch = new_batch

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens."""
        return self._adapter.probe(text)

    def alone(self, tokens: list[int]) -> Any:
        """Return the logits of a text on its own."""
        return self._adapter.probe_logits(tokens)

    def batch(
        self, recorder: ScoreRecorder, joint: JointPrefill
    ) -> tuple[ModelBatch, Callable[[list[int]], Slot]]:
        """Return a new batch, and a function that adds a text to it."""
        batch = self._new_batch(recorder, joint)

        def add(tokens: list[int]) -> Slot:
            return batch.add(tokens, SamplingParams(), inputs=self._adapter.probe_inputs(tokens))

        return batch, add
