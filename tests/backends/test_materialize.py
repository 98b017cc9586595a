"""Weights are read in slices, and a cancelled load frees them."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest

from mlx_magic.backends import library_backend
from mlx_magic.backends.device import platform
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.engine import Engine

SIDE = 64
BYTES = SIDE * SIDE * 4


def reading(model: Any, cancel: CancelToken, **how: Any) -> Any:
    """Read a model's weights without a background task."""
    how.setdefault("progress", lambda done, total, note: None)
    how.setdefault("beside", BackgroundCall(lambda: None, here=True))
    return library_backend.materialize(model, cancel=cancel, **how)


def layers(count: int, *, quantize: bool = False) -> Any:
    """A lazy stack of square layers: nothing of it is evaluated yet."""
    import mlx.core as mx
    from mlx import nn

    stack = nn.Sequential(*[nn.Linear(SIDE, SIDE, bias=False) for _ in range(count)])
    stack.update({"layers": [{"weight": mx.random.normal((SIDE, SIDE))} for _ in range(count)]})
    if quantize:
        nn.quantize(stack, group_size=32, bits=4)
    return stack


def test_slices_report_bytes_and_can_be_cancelled_between(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_backend, "SLICE_BYTES", 2 * BYTES)

    def work() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        steps = reading(layers(5), CancelToken(), progress=lambda d, t, n: seen.append((d, t)))
        assert sum(1 for _ in steps) == 3
        return seen

    seen = engine.call(work).result(30)
    assert seen == [(2 * BYTES, 5 * BYTES), (4 * BYTES, 5 * BYTES), (5 * BYTES, 5 * BYTES)]


def test_large_array_is_a_slice_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other requests wait for the largest array only, not also for those before it."""
    monkeypatch.setattr(library_backend, "SLICE_BYTES", 64)
    sizes = [10, 30, 70, 10, 64, 50, 20, 5]
    arrays = [np.zeros(size, np.uint8) for size in sizes]
    slices = [[array.nbytes for array in part] for part in library_backend._slices(arrays)]
    assert slices == [[10, 30], [70], [10], [64], [50, 20], [5]]


def test_cancelled_load_frees_its_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_backend, "SLICE_BYTES", BYTES)

    def work() -> tuple[int, int, int]:
        before = platform.memory().active
        token, model = CancelToken(), layers(8)
        steps = reading(model, token)
        next(steps)
        next(steps)
        during = platform.memory().active
        token.cancel()
        with pytest.raises(Cancelled):
            next(steps)
        return before, during, platform.memory().active

    before, during, after = engine.call(work).result(30)
    assert during >= before + 2 * BYTES
    assert after < before + BYTES


def test_failing_background_task_ends_the_read_and_frees_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_backend, "SLICE_BYTES", BYTES)

    def work() -> tuple[int, int, bool]:
        failed = threading.Event()

        def fail() -> None:
            failed.wait(30)
            raise ValueError("no tokenizer")

        before, model = platform.memory().active, layers(8)
        beside = BackgroundCall(fail)
        steps = reading(model, CancelToken(), beside=beside)
        next(steps)
        during = platform.memory().active
        failed.set()
        wait([beside._future])
        with pytest.raises(ValueError, match="no tokenizer"):
            next(steps)
        return during - before, platform.memory().active - before, bool(model.parameters())

    during, after, left = engine.call(work).result(30)
    assert during >= BYTES
    assert after < BYTES
    assert not left


def test_read_waits_for_the_background_task_and_can_be_cancelled(engine: Engine) -> None:
    def work() -> tuple[int, int, int]:
        before, token, gate = platform.memory().active, CancelToken(), threading.Event()
        done: list[int] = []
        model, beside = layers(2), BackgroundCall(gate.wait)
        steps = reading(model, token, beside=beside, progress=lambda d, t, n: done.append(d))
        try:
            while not done:
                next(steps)
            waits = [next(steps) for _ in range(3)]
            token.cancel()
            with pytest.raises(Cancelled):
                next(steps)
        finally:
            gate.set()
        return done[-1], len(waits), platform.memory().active - before

    read, waits, after = engine.call(work).result(30)
    assert (read, waits) == (2 * BYTES, 3)
    assert after < BYTES


def test_quantized_weights_are_dequantized_on_a_cpu(engine: Engine) -> None:
    def work() -> tuple[bool, int, int, float]:
        import mlx.core as mx

        packed = layers(2, quantize=True)
        elements = library_backend._elements(packed)
        inputs = mx.random.normal((3, SIDE))
        expected = packed(inputs)
        for _ in reading(packed, CancelToken()):
            pass
        difference = float(mx.abs(packed(inputs) - expected).max())
        return platform.is_gpu(), elements, library_backend.weights_nbytes(packed), difference

    gpu, elements, nbytes, difference = engine.call(work).result(30)
    # Weights, and a scale and a bias for each group of 32.
    assert elements == 2 * (SIDE * SIDE + 2 * SIDE * SIDE // 32)
    assert difference < 1e-3
    assert gpu or nbytes == 2 * BYTES
