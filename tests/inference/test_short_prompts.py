"""How often the language model of a vision model is called for a prompt; the answer is the same."""

from __future__ import annotations

from typing import Any

import pytest

import mlx_magic
from mlx_magic.inference.backends import vision_batch
from mlx_magic.inference.backends.sampler import Draw
from mlx_magic.inference.backends.vision_batch import SHORT, VisionBatch
from mlx_magic.inference.engine import Engine

pytestmark = pytest.mark.model

Shapes = list[tuple[int, ...]]


class Watched:
    """A language model that notes what it is given."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.shapes: Shapes = []

    def __call__(self, tokens: Any, **more: Any) -> Any:
        self.shapes.append(tuple(tokens.shape))
        return self._model(tokens, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def answer(lengths: list[int], chunk: int) -> tuple[Shapes, list[list[int]]]:
    """Read prompts and write six tokens; return the calls before the first, and the tokens."""
    import mlx.core as mx
    from mlx_vlm import load

    loaded: Any = load(str(mlx_magic.demo_model()))
    model, processor = loaded
    model.set_dtype(mx.float32)
    watched = Watched(model.language_model)
    batch = VisionBatch(watched, processor, chunk=chunk, most=8)
    batch._ends = lambda token: False
    seats = []
    for number, length in enumerate(lengths):
        tokens = [10 + (7 * at + number) % 900 for at in range(length)]
        embeds = {"inputs_embeds": model.language_model.embed_tokens(mx.array([tokens]))}
        draw = Draw()
        seats.append(batch.add(tokens, embeds, max_tokens=6, draw=draw))
    calls: Shapes = []
    while not all(len(seat.written) == 6 for seat in seats):
        batch._advance()
        for seat in seats:
            assert seat.error is None
        if not calls and seats[0].written:
            calls = [*watched.shapes]
    return calls, [[each.token for each in seat.written] for seat in seats]


def ask(engine: Engine, lengths: list[int], chunk: int = 256) -> tuple[Shapes, list[list[int]]]:
    return engine.call(lambda: answer(lengths, chunk)).result(60)


@pytest.mark.parametrize(
    ("lengths", "chunk", "calls"),
    [
        ([60], 256, [(1, 60)]),
        ([SHORT], 256, [(1, SHORT)]),
        ([SHORT + 1], 256, [(1, SHORT), (1, 1)]),
        ([200], 100, [(1, 100), (1, 100)]),
        # No more than a chunk at a time: between two of them one can cancel.
        ([60], 16, [(1, 16), (1, 16), (1, 16), (1, 12)]),
        ([17], 16, [(1, 17)]),
        ([30, 25, 28], 256, [(3, 30)]),
        ([60, 50, 55], 256, [(3, 59), (3, 1)]),
    ],
)
def test_a_short_rest_is_read_with_the_last_token(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    lengths: list[int],
    chunk: int,
    calls: Shapes,
) -> None:
    seen, tokens = ask(engine, lengths, chunk)
    assert seen == calls
    monkeypatch.setattr(vision_batch, "SHORT", 0)
    seen, by_itself = ask(engine, lengths, chunk)
    assert seen[-1] == (len(lengths), 1)
    assert tokens == by_itself
