"""Number of prefill calls for a short prompt; the answer is the same."""

from __future__ import annotations

from typing import Any

import pytest

import mlx_magic
from mlx_magic.backends.batching.model_batch import ModelBatch
from mlx_magic.backends.batching.sampling import SamplingParams
from mlx_magic.backends.device import platform
from mlx_magic.backends.device.platform import LOGITS_CUDA, SHORT
from mlx_magic.backends.vision.forward import VisionForward
from mlx_magic.engine.engine import Engine

pytestmark = pytest.mark.model

Shapes = list[tuple[int, ...]]


class Watched:
    """A language model that records its inputs."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.shapes: Shapes = []

    def __call__(self, tokens: Any, **more: Any) -> Any:
        self.shapes.append(tuple(tokens.shape))
        return self._model(tokens, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def answer(lengths: list[int], chunk: int, at_once: int) -> tuple[Shapes, list[list[int]]]:
    """Prefill prompts and generate six tokens; return the prefill calls and the tokens."""
    import mlx.core as mx
    from mlx_vlm import load

    loaded: Any = load(str(mlx_magic.demo_model()))
    model, _ = loaded
    model.set_dtype(mx.float32)
    watched = Watched(model.language_model)
    forward = VisionForward(watched, lambda token: False)
    batch = ModelBatch(forward, chunk=chunk, most=8, joint_tokens=at_once)
    seats = []
    for number, length in enumerate(lengths):
        tokens = [10 + (7 * at + number) % 900 for at in range(length)]
        embeds = {"inputs_embeds": model.language_model.embed_tokens(mx.array([tokens]))}
        seats.append(batch.add(tokens, SamplingParams(), inputs=embeds))
    calls: Shapes = []
    while not all(len(seat.written) >= 6 for seat in seats):
        batch.advance()
        for seat in seats:
            assert seat.error is None
        if not calls and seats[0].written:
            calls = [*watched.shapes]
    return calls, [[each.token for each in seat.written][:6] for seat in seats]


def ask(
    engine: Engine, lengths: list[int], chunk: int = 256, at_once: int = SHORT
) -> tuple[Shapes, list[list[int]]]:
    return engine.call(lambda: answer(lengths, chunk, at_once)).result(60)


@pytest.mark.parametrize(
    ("lengths", "chunk", "calls"),
    [
        ([60], 256, [(1, 60)]),
        ([SHORT], 256, [(1, SHORT)]),
        ([SHORT + 1], 256, [(1, SHORT), (1, 1)]),
        ([200], 100, [(1, 100), (1, 100)]),
        # At most a chunk at a time: cancel works between chunks.
        ([60], 16, [(1, 16), (1, 16), (1, 16), (1, 12)]),
        ([17], 16, [(1, 17)]),
        ([30, 25, 28], 256, [(3, 30)]),
        ([60, 50, 55], 256, [(3, 59), (3, 1)]),
    ],
)
def test_short_remainder_is_prefilled_with_the_last_token(
    engine: Engine,
    lengths: list[int],
    chunk: int,
    calls: Shapes,
) -> None:
    seen, tokens = ask(engine, lengths, chunk)
    assert seen == calls
    seen, by_itself = ask(engine, lengths, chunk, at_once=0)
    assert seen[-1] == (len(lengths), 1)
    assert tokens == by_itself


def test_prompt_within_the_limit_is_prefilled_in_one_call(engine: Engine) -> None:
    lengths = [60, 50, 55]
    seen, tokens = ask(engine, lengths, at_once=512)
    assert seen == [(3, 60)]
    assert tokens == ask(engine, lengths, at_once=0)[1]


@pytest.mark.parametrize("vocabulary", [0, 1_000, 49_280, 256_000, 10**7])
def test_prefill_limit_is_higher_if_a_call_costs_more_than_its_logits(
    monkeypatch: pytest.MonkeyPatch, vocabulary: int
) -> None:
    assert platform.read_at_once(vocabulary) == SHORT
    monkeypatch.setattr(platform, "is_gpu", lambda: True)
    monkeypatch.setattr(platform.sys, "platform", "darwin")  # type: ignore[attr-defined]
    assert platform.read_at_once(vocabulary) == SHORT
    monkeypatch.setattr(platform.sys, "platform", "linux")  # type: ignore[attr-defined]
    tokens = platform.read_at_once(vocabulary)
    row = 2 * vocabulary
    assert tokens == SHORT or tokens * row <= LOGITS_CUDA < (tokens + 1) * row
    assert (tokens > SHORT) == (0 < vocabulary < 10**6)
