"""Digests of arrays: the same for the same bytes, type and shape, and for nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.inference.backends import device, digests
from mlx_magic.inference.backends.digests import BLOCK, condensed, digest


@pytest.fixture(scope="module", autouse=True)
def mlx() -> None:
    device.start()


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digest large arrays as on a GPU; its operations are the CPU's too."""
    monkeypatch.setattr(device, "is_gpu", lambda: True)


def pixels(seed: int = 0, shape: tuple[int, ...] = (1, 90, 90, 3)) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numbers(array: Any) -> bytes:
    import mlx.core as mx

    return np.asarray(condensed(mx.array(array))).tobytes()


def test_large_arrays_of_a_gpu_are_condensed(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    seen: list[int] = []

    def noted(array: Any) -> Any:
        seen.append(array.nbytes)
        return condensed(array)

    monkeypatch.setattr(digests, "condensed", noted)
    one, other = mx.array(pixels(0)), mx.array(pixels(1))
    assert digest(one) == digest(mx.array(pixels(0))) != digest(other)
    assert seen == [one.nbytes] * 3
    digest(one[:, :10, :10])
    assert len(seen) == 3


@pytest.mark.parametrize("gpu", [False, True])
def test_type_and_shape_belong_to_it(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    monkeypatch.setattr(device, "is_gpu", lambda: gpu)
    one = mx.array(pixels())
    views = [one, one.reshape(90, 90, 3), one.view(mx.int32), one.transpose(0, 2, 1, 3)]
    narrow = [one.astype(mx.bfloat16), one.astype(mx.float16)]
    assert len({digest(view) for view in [*views, *narrow]}) == 6


@given(
    size=st.integers(1, 3 * BLOCK),
    at=st.integers(0, 3 * BLOCK),
    bit=st.integers(0, 15),
)
def test_a_single_bit_makes_another_one(size: int, at: int, bit: int) -> None:
    words = np.zeros(size, np.uint16)
    before = numbers(words)
    words[at % size] ^= np.uint16(1 << bit)
    assert numbers(words) != before


def test_words_that_change_places_make_another_one() -> None:
    words = np.arange(2 * BLOCK, dtype=np.uint16)
    turned = np.concatenate([words[BLOCK:], words[:BLOCK]])
    swapped = words.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert len({numbers(words), numbers(turned), numbers(swapped)}) == 3
