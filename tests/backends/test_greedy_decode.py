"""Decode steps in which all rows are greedy: no log probabilities, the same tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlx_magic
from mlx_magic.backends.batching.greedy_decode import GreedyModel
from mlx_magic.backends.batching.sampling import BAD, RowSampler, SamplingParams
from mlx_magic.backends.device import platform
from mlx_magic.backends.vision.batch import VisionBatch
from mlx_magic.engine.engine import Engine

pytestmark = pytest.mark.model

STEPS = 12


@pytest.fixture(autouse=True)
def prepare_platform() -> None:
    platform.prepare()


def next_tokens(logits: Any) -> list[int]:
    """Return what a greedy step makes of a model's output of shape (rows, 1, vocabulary)."""
    rows = logits.shape[0]
    sampler = RowSampler()
    sampler.rows = list(range(rows))
    sampler.draws = {row: SamplingParams() for row in range(rows)}
    model = GreedyModel(lambda inputs, cache: SimpleNamespace(logits=logits), sampler)
    found = model.fused_greedy_decode(None, cache=[])
    assert sampler.drawn is found
    tokens: list[int] = found.tolist()
    return tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_greedy_decode_takes_the_argmax_and_nan_ends_its_row(dtype: str) -> None:
    import mlx.core as mx

    # No row has equal values in any of these types.
    rows = [mx.random.permutation(100, key=mx.random.key(row)) for row in range(4)]
    logits = mx.stack(rows)[:, None].astype(getattr(mx, dtype))
    best: Any = mx.argmax(logits[:, 0], axis=-1).tolist()
    assert next_tokens(logits) == best
    logits[1, 0, (best[1] + 1) % 100] = mx.nan
    # A model may set logits to -inf.
    logits[2, 0, (best[2] + 1) % 100] = -mx.inf
    assert next_tokens(logits) == [best[0], BAD, best[2], best[3]]
    logits[0], logits[3, 0, 50] = -mx.inf, mx.inf
    assert next_tokens(logits) == [BAD, BAD, best[2], BAD]


# The fixture's only effect is the choice of BLAS.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.integers(1, 33), width=st.integers(2, 200), data=st.data())
def test_nan_at_any_position_ends_its_row(rows: int, width: int, data: st.DataObject) -> None:
    import mlx.core as mx

    row, at = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, width - 1))
    logits = mx.random.normal((rows, 1, width), key=mx.random.key(0))
    logits[row, 0, at] = mx.nan
    bad = [number for number, token in enumerate(next_tokens(logits)) if token == BAD]
    assert bad == [row]


def test_low_precision_choice_equals_that_of_log_probabilities() -> None:
    import mlx.core as mx

    logits = mx.zeros((1, 1, 30_000), mx.bfloat16)
    logits[0, 0, 10], logits[0, 0, 20] = 1.0, 1.0078125
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    assert mx.argmax(logits, axis=-1).item() == 20
    assert mx.argmax(logprobs, axis=-1).item() == 10
    assert next_tokens(logits) == [10]


Answers = list[list[int]]


def answers(draws: list[SamplingParams], processors: list[Any], picks: list[int]) -> Answers:
    """Generate some tokens for each answer; record how many rows each pick had."""
    import mlx.core as mx
    from mlx_vlm import load

    loaded: Any = load(str(mlx_magic.demo_model()))
    model, processor = loaded
    model.set_dtype(mx.float32)
    batch = VisionBatch(model.language_model, processor, chunk=256, most=8)
    batch._is_stop_token = lambda token: False
    real = batch._greedy_model.fused_greedy_decode

    def noted(inputs: Any, **kwargs: Any) -> Any:
        picks.append(inputs.shape[0])
        return real(inputs, **kwargs)

    batch._greedy_model.fused_greedy_decode = noted
    seats = []
    for number, draw in enumerate(draws):
        tokens = [10 + (7 * at + number) % 900 for at in range(20)]
        embeds = {"inputs_embeds": model.language_model.embed_tokens(mx.array([tokens]))}
        seats.append(
            batch.add(tokens, embeds, max_tokens=STEPS, params=draw, processors=processors[number])
        )
    while not all(len(seat.written) == STEPS for seat in seats):
        batch.advance()
        for seat in seats:
            assert seat.error is None
    return [[each.token for each in seat.written] for seat in seats]


def ask(engine: Engine, draws: list[SamplingParams], processors: list[Any] | None = None) -> Any:
    picks: list[int] = []
    every = processors or [[] for _ in draws]
    found = engine.call(lambda: answers(draws, every, picks)).result(60)
    return found, picks


def test_greedy_answers_are_the_same_with_and_without_log_probabilities(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, picks = ask(engine, [SamplingParams()] * 3)
    assert set(picks) == {3}
    assert len(picks) >= STEPS - 1
    monkeypatch.setattr(RowSampler, "is_greedy", lambda self, uids: False)
    assert ask(engine, [SamplingParams()] * 3) == (found, [])


def test_log_probabilities_are_computed_in_a_mixed_batch(engine: Engine) -> None:
    greedy, _ = ask(engine, [SamplingParams()] * 2)
    beside, picks = ask(engine, [SamplingParams(), SamplingParams(1.0, seed=3)])
    assert (beside[0], picks) == (greedy[0], [])

    def second_best(tokens: Any, logits: Any) -> Any:
        import mlx.core as mx

        logits[:, mx.argmax(logits, axis=-1)] = -mx.inf
        return logits

    changed, picks = ask(engine, [SamplingParams(), SamplingParams()], [[], [second_best]])
    assert (changed[0], picks) == (greedy[0], [])
    assert changed[1] != greedy[1]
