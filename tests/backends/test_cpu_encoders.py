"""Image encoders that use NumPy's exponentials give the same features."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import mlx_magic
from mlx_magic.backends.device import platform
from mlx_magic.backends.vision import cpu_encoders
from mlx_magic.engine.engine import Engine

WIDTH, HEADS = 40, 5


def same(one: Any, other: Any) -> bool:
    import mlx.core as mx

    return bool(one.dtype == other.dtype and mx.allclose(one, other, rtol=1e-5, atol=1e-5))


@pytest.mark.parametrize("approx", ["none", "precise", "tanh", "fast"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(3, 50, 400), (2, 7), (700, 400)])
def test_gelu_equals_mlx(engine: Engine, approx: str, dtype: str, shape: tuple[int, ...]) -> None:
    def work() -> bool:
        import mlx.core as mx
        from mlx import nn

        part: Any = nn.GELU(approx=approx)
        x = (30 * mx.random.normal(shape)).astype(getattr(mx, dtype))
        return same(cpu_encoders._Gelu(part)(x), part(x))

    assert engine.call(work).result(30)


def test_gelu_keeps_nan_and_extreme_values(engine: Engine) -> None:
    def work() -> list[list[float]]:
        import mlx.core as mx
        from mlx import nn

        x = mx.concatenate([mx.zeros(cpu_encoders.LEAST), mx.array([mx.nan, -1e30, 1e30, -500.0])])
        return [
            cpu_encoders._Gelu(nn.GELU(approx=approx))(x)[-4:].tolist()
            for approx in ("precise", "fast")
        ]

    for nan, least, most, small in engine.call(work).result(30):
        assert nan != nan
        assert (least, small) == (0, 0)
        assert most == pytest.approx(1e30)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [20, 130])
@pytest.mark.parametrize("scores", [cpu_encoders.MOST_SCORES, 30_000, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_mlx(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    length: int,
    scores: int,
    masked: bool,
) -> None:
    monkeypatch.setattr(cpu_encoders, "MOST_SCORES", scores)

    def work() -> bool:
        import mlx.core as mx
        from mlx_vlm.models.attention import VisionAttention

        part = VisionAttention(WIDTH, HEADS)
        x = 3 * mx.random.normal((batch, length, WIDTH))
        hidden = mx.where(mx.random.uniform(shape=(length, length)) < 0.9, 0.0, -1e9)
        mask = hidden if masked else None
        return same(cpu_encoders._Attention(part)(x, mask), part(x, mask))

    assert engine.call(work).result(30)


@pytest.mark.model
def test_bundled_image_encoder_gives_the_same_features_and_is_unchanged(engine: Engine) -> None:
    def work() -> tuple[int, bool, bool]:
        import mlx.core as mx
        from mlx.utils import tree_flatten
        from mlx_vlm.utils import load_model

        model: Any = load_model(mlx_magic.demo_model())
        model.set_dtype(mx.float32)
        parts = [name for name, _ in tree_flatten(model.parameters())]
        image = mx.random.normal((1, 128, 128, 3))
        before = model.vision_model(image)[0]
        mx.eval(before)
        places = cpu_encoders.use_numpy_exponentials(model)
        alike = bool(mx.allclose(model.vision_model(image)[0], before, atol=1e-4))
        return places, alike, [name for name, _ in tree_flatten(model.parameters())] == parts

    # An attention and a GELU in each of five layers.
    assert engine.call(work).result(60) == (10, True, True)


def test_gpu_and_mac_have_vector_math(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "is_gpu", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not platform.has_vector_math()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert platform.has_vector_math()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "is_gpu", lambda: True)
    assert platform.has_vector_math()
