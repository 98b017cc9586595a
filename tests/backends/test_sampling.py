"""Sampling per row: each row's own parameters, independent of other rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_magic.backends.batching.sampling import (
    BAD,
    SamplingParams,
    guarded,
    processors,
    repetition_penalty,
    sample_rows,
)
from mlx_magic.backends.device import platform
from mlx_magic.engine.request import Sampling

pytestmark = pytest.mark.model  # needs mlx, no weights

VOCABULARY = 50


def logprobs(rows: int, seed: int = 0) -> Any:
    platform.prepare()
    import mlx.core as mx

    logits = mx.array(np.random.default_rng(seed).normal(size=(rows, VOCABULARY)) * 3)
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def draw(rows: Any, draws: list[SamplingParams], position: int = 0) -> list[int]:
    found: list[int] = sample_rows(rows, draws, [position] * len(draws)).tolist()
    return found


def greedy(logits: Any) -> list[int]:
    return draw(logits, [SamplingParams()] * logits.shape[0])


def drawn(row: Any, how: dict[str, Any], count: int = 300) -> set[int]:
    """Return the samples of many seeds for one row."""
    import mlx.core as mx

    rows = mx.repeat(row, count, axis=0)
    return set(draw(rows, [SamplingParams(seed=seed, **how) for seed in range(count)]))


def test_greedy_takes_the_most_probable_token() -> None:
    rows = logprobs(4)
    assert draw(rows, [SamplingParams()] * 4) == np.array(rows).argmax(axis=-1).tolist()


def test_row_samples_the_same_in_any_batch() -> None:
    rows = logprobs(6)
    draws = [
        SamplingParams(),
        SamplingParams(1.0, seed=3),
        SamplingParams(0.7, top_p=0.8, seed=4),
        SamplingParams(1.5, top_k=5, seed=5),
        SamplingParams(1.0, min_p=0.2, seed=6),
        SamplingParams(0.9, 0.9, 9, 0.01, seed=7),
    ]
    together = draw(rows, draws, position=11)
    alone = [draw(rows[at : at + 1], [draws[at]], position=11)[0] for at in range(6)]
    assert together == alone


def test_seed_and_position_determine_the_sample() -> None:
    row = logprobs(1)
    hot = SamplingParams(2.0, seed=1)
    assert draw(row, [hot], 5) == draw(row, [hot], 5)
    places = {draw(row, [hot], place)[0] for place in range(40)}
    seeds = {draw(row, [SamplingParams(2.0, seed=seed)], 5)[0] for seed in range(40)}
    assert len(places) > 5
    assert len(seeds) > 5


def test_top_k_keeps_k_tokens() -> None:
    row = logprobs(1)
    likeliest = np.array(row)[0].argsort()[::-1]
    assert drawn(row, {"temperature": 3.0, "top_k": 3}) == set(likeliest[:3].tolist())


def test_top_p_keeps_the_nucleus() -> None:
    row = logprobs(1)
    chances = np.exp(np.array(row)[0])
    order = chances.argsort()[::-1]
    before = np.cumsum(chances[order]) - chances[order]
    nucleus = set(order[before < 0.6].tolist())
    found = drawn(row, {"temperature": 1.0, "top_p": 0.6})
    assert found <= nucleus
    assert order[0] in found


def test_a_tiny_top_p_is_greedy() -> None:
    row = logprobs(1)
    assert drawn(row, {"temperature": 1.0, "top_p": 1e-6}) == {int(np.array(row)[0].argmax())}


def test_min_p_keeps_tokens_near_the_most_probable() -> None:
    row = logprobs(1)
    chances = np.exp(np.array(row)[0])
    near = set(np.flatnonzero(chances >= 0.3 * chances.max()).tolist())
    assert drawn(row, {"temperature": 1.0, "min_p": 0.3}) <= near


def test_sampling_without_limits_follows_the_model_distribution() -> None:
    import mlx.core as mx

    row = mx.log(mx.array([[0.5, 0.3, 0.2]]))
    tokens = draw(
        mx.repeat(row, 4_000, axis=0), [SamplingParams(1.0, seed=s) for s in range(4_000)]
    )
    shares = np.bincount(tokens, minlength=3) / 4_000
    assert np.abs(shares - [0.5, 0.3, 0.2]).max() < 0.04


def test_nan_logits_affect_only_their_row() -> None:
    import mlx.core as mx

    rows = logprobs(3)
    good = draw(rows, [SamplingParams(), SamplingParams(1.0, seed=1), SamplingParams()])
    rows[1] = mx.nan
    assert draw(rows, [SamplingParams(), SamplingParams(1.0, seed=1), SamplingParams()]) == [
        good[0],
        BAD,
        good[2],
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_greedy_row_ends_with_nan_or_infinite_logits_and_not_with_ruled_out_tokens(
    dtype: str,
) -> None:
    import mlx.core as mx

    # No row has equal values in any of these types.
    rows = [mx.random.permutation(100, key=mx.random.key(row)) for row in range(4)]
    logits = mx.stack(rows).astype(getattr(mx, dtype))
    best: Any = mx.argmax(logits, axis=-1).tolist()
    logits[0], logits[3, 50] = -mx.inf, mx.inf
    logits[1, (best[1] + 1) % 100] = mx.nan
    logits[2, (best[2] + 1) % 100] = -mx.inf
    found = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    assert draw(found, [SamplingParams()] * 4) == [BAD, BAD, best[2], BAD]


def test_repetition_penalty_lowers_generated_tokens_and_not_the_prompt() -> None:
    import mlx.core as mx

    logits = mx.array([[2.0, -2.0, 1.0, 4.0]])
    process = repetition_penalty(2.0, prompt_tokens=2)
    assert process(mx.array([3, 2]), logits).tolist() == [[2.0, -2.0, 1.0, 4.0]]
    after = process(mx.array([3, 2, 0, 1]), mx.array(logits))
    assert after.tolist() == [[1.0, -4.0, 1.0, 4.0]]


def test_penalty_without_effect_is_not_applied() -> None:
    assert processors(Sampling(), 1) == []
    assert processors(Sampling(repetition_penalty=1.0), 1) == []
    assert len(processors(Sampling(repetition_penalty=1.1), 1)) == 1


def test_failing_logits_processor_is_reported_once_and_leaves_the_logits() -> None:
    calls: list[int] = []
    errors: list[Exception] = []

    def broken(tokens: Any, logits: Any) -> Any:
        calls.append(1)
        raise ValueError("no")

    process = guarded(broken, errors.append)
    assert [process([], "logits") for _ in range(3)] == ["logits"] * 3
    assert len(calls) == 1
    assert str(errors[0]) == "no"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_greedy_sampling_takes_the_argmax_and_nan_ends_its_row(dtype: str) -> None:
    platform.prepare()
    import mlx.core as mx

    # No row has equal values in any of these types.
    rows = [mx.random.permutation(100, key=mx.random.key(row)) for row in range(4)]
    logits = mx.stack(rows).astype(getattr(mx, dtype))
    best: Any = mx.argmax(logits, axis=-1).tolist()
    assert greedy(logits) == best
    logits[1, (best[1] + 1) % 100] = mx.nan
    # A model may set logits to -inf.
    logits[2, (best[2] + 1) % 100] = -mx.inf
    assert greedy(logits) == [best[0], BAD, best[2], best[3]]
    logits[0], logits[3, 50] = -mx.inf, mx.inf
    assert greedy(logits) == [BAD, BAD, best[2], BAD]


@settings(deadline=None)
@given(rows=st.integers(1, 33), width=st.integers(2, 200), data=st.data())
def test_nan_at_any_position_ends_its_row(rows: int, width: int, data: st.DataObject) -> None:
    platform.prepare()
    import mlx.core as mx

    row, at = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, width - 1))
    logits = mx.random.normal((rows, width), key=mx.random.key(0))
    logits[row, at] = mx.nan
    bad = [number for number, token in enumerate(greedy(logits)) if token == BAD]
    assert bad == [row]


def test_low_precision_choice_equals_that_of_log_probabilities() -> None:
    platform.prepare()
    import mlx.core as mx

    logits = mx.zeros((1, 30_000), mx.bfloat16)
    logits[0, 10], logits[0, 20] = 1.0, 1.0078125
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    assert mx.argmax(logits, axis=-1).item() == 20
    assert mx.argmax(logprobs, axis=-1).item() == 10
    assert greedy(logits) == [10]
