"""Requests of a map in a batch: others are read first, and find a free slot."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_magic.backends.batching.batch import Slot
from mlx_magic.backends.batching.model_batch import RESERVED, ModelBatch
from mlx_magic.backends.batching.sampling import SamplingParams

MOST = 8


class Forward:
    """A model of which only the order of prompts is asked."""

    stream = None

    def new_caches(self) -> list[Any]:
        """Return no caches."""
        return []

    def joins(self, inputs: object) -> bool:
        """Return True."""
        return True

    def reads_in_chunks(self, tokens: object, caches: object, inputs: object) -> bool:
        """Return True."""
        return True

    def is_stop_token(self, token: int) -> bool:
        """Return False."""
        return False


class Decoding:
    """Rows that are in decode."""

    caches: tuple[object, ...] = ()

    def __init__(self, count: int) -> None:
        self.slots = [object()] * count


@pytest.fixture
def batch() -> ModelBatch:
    return ModelBatch(Forward(), chunk=64, most=MOST)  # type: ignore[arg-type]


def add(batch: ModelBatch, count: int, *, background: bool) -> list[Slot]:
    return [batch.add([1, 2, 3], SamplingParams(), background=background) for _ in range(count)]


def next_prompts(batch: ModelBatch, decoding: int) -> list[Slot]:
    batch._decode_batch = Decoding(decoding) if decoding else None  # type: ignore[assignment]
    return batch._next_slots() if batch._next_slot is not None else []


def test_prompts_of_others_are_read_before_those_of_a_map_and_alone(batch: ModelBatch) -> None:
    mapped = add(batch, 3, background=True)
    asked = add(batch, 2, background=False)
    assert next_prompts(batch, 0) == asked
    assert next_prompts(batch, 0) == mapped


def test_map_leaves_slots_free_for_others(batch: ModelBatch) -> None:
    mapped = add(batch, MOST, background=True)
    assert next_prompts(batch, 0) == mapped[: MOST - RESERVED]
    assert next_prompts(batch, MOST - RESERVED) == []
    [asked] = add(batch, 1, background=False)
    assert next_prompts(batch, MOST - RESERVED) == [asked]
    assert next_prompts(batch, MOST) == []
