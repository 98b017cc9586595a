"""Fast submodule lookup and weights that are transposed once."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

import mlx_magic
from mlx_magic.backends.device import platform
from mlx_magic.backends.loading import fast_modules
from mlx_magic.backends.proxy import Proxy, install_proxy
from tests.model_folders import smollm2_folder

pytestmark = pytest.mark.model

SHAPES = [(1, 1, 64), (1, 7, 64), (5, 3, 64)]


@pytest.fixture(autouse=True)
def prepare_platform() -> None:
    platform.prepare()


@pytest.fixture
def slow_lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names looked up through `Module.__getattr__`, MLX's slower way."""
    import mlx.nn as nn

    names: list[str] = []
    real: Any = nn.Module.__getattr__

    def counted(self: Any, name: str) -> Any:
        names.append(name)
        return real(self, name)

    monkeypatch.setattr(nn.Module, "__getattr__", counted)
    return names


def make_block() -> Any:
    import mlx.core as mx
    import mlx.nn as nn

    class Inner(nn.Module):  # type: ignore[misc]
        gate = None

        def __init__(self, *, bias: bool) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=bias)
            self.scale = mx.ones((4,))
            self["gate"] = nn.Linear(4, 4)

        def __call__(self, x: Any) -> Any:
            return self.first(x) * self.scale

    class Outer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Inner(bias=True), Inner(bias=False)]
            self.tables = [mx.ones((4,))]
            self.empty: list[Any] = []

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x * self.tables[0]

    made = Outer()
    mx.eval(made.parameters())
    return made


def test_submodules_are_found_without_getattr_and_arrays_as_before(slow_lookups: list[str]) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    model, x = make_block(), mx.ones((1, 4))
    names = [name for name, _ in tree_flatten(model.parameters())]
    before = model(x)
    assert {"layers", "first"} <= set(slow_lookups)
    fast_modules.speed_up(model)
    slow_lookups.clear()
    assert mx.array_equal(model(x), before)
    assert set(slow_lookups) == {"scale", "tables"}
    assert [name for name, _ in tree_flatten(model.parameters())] == names


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transposed_weight_gives_the_same_numbers_and_takes_no_memory(
    dtype: str, bias: bool
) -> None:
    import mlx.core as mx
    import mlx.nn as nn

    layer = nn.Linear(64, 256, bias=bias)
    layer.set_dtype(getattr(mx, dtype))
    # One token, a prefill chunk, and a batch.
    inputs = [mx.random.normal(shape).astype(layer.weight.dtype) for shape in SHAPES]
    before = [layer(x) for x in inputs]
    mx.eval(before, layer.parameters())
    active = mx.get_active_memory()
    fast_modules.speed_up(layer)
    assert mx.get_active_memory() == active
    assert isinstance(layer, nn.Linear)
    assert type(layer) is not nn.Linear
    assert all(mx.array_equal(layer(x), y) for x, y in zip(inputs, before, strict=True))


def test_weights_and_lists_of_arrays_can_still_be_changed() -> None:
    import mlx.core as mx

    model, x = make_block(), mx.ones((1, 4))
    fast_modules.speed_up(model)
    before = model(x)
    model.layers[0].update({"scale": mx.full((4,), 2.0), "first": {"bias": mx.zeros((4,))}})
    model.layers[0].first.weight = mx.full((4, 4), 0.5)
    model.layers[1].update({"first": {"weight": mx.full((4, 4), 0.25)}})
    model.tables = [mx.full((4,), 3.0)]
    again = make_block()
    again.update(model.parameters())
    assert not mx.array_equal(model(x), before)
    assert mx.array_equal(model(x), again(x))
    model.empty = [1]
    assert model.empty == [1]


def test_replaced_weight_is_freed() -> None:
    import mlx.core as mx
    import mlx.nn as nn

    layer, x = nn.Linear(256, 256, bias=False), mx.ones((1, 256))
    mx.eval(layer.parameters())
    fast_modules.speed_up(layer)
    mx.eval(layer(x))
    other = mx.full((256, 256), 0.5)
    mx.eval(other, x)
    before = mx.get_active_memory()
    layer.weight = other
    assert mx.array_equal(layer(x), x @ other.T)
    assert before - mx.get_active_memory() >= other.nbytes


def test_proxy_of_a_submodule_stays_installed() -> None:
    model = make_block()
    front = Proxy(model.layers[0].first)
    install_proxy(model.layers[0], "first", front)
    fast_modules.speed_up(model)
    assert model.layers[0].first is front


def test_class_attribute_takes_precedence_over_a_submodule() -> None:
    model = make_block()
    assert model.layers[0].gate is None
    fast_modules.speed_up(model)
    assert model.layers[0].gate is None


def test_other_layers_with_a_weight_are_unchanged() -> None:
    import mlx.core as mx
    import mlx.nn as nn

    class Doubled(nn.Linear):  # type: ignore[misc]
        def __call__(self, x: Any) -> Any:
            return 2 * super().__call__(x)

    layers = [Doubled(64, 64), nn.QuantizedLinear(64, 64), nn.Embedding(4, 64)]
    kinds = [type(layer) for layer in layers]
    model = make_block()
    model.layers = layers
    x = mx.random.normal((1, 64))
    before = [layers[0](x), layers[1](x)]
    fast_modules.speed_up(model)
    assert [type(layer) for layer in layers] == kinds
    assert mx.array_equal(layers[0](x), before[0])
    assert mx.array_equal(layers[1](x), before[1])


def test_speed_up_keeps_no_reference_to_the_model() -> None:
    import mlx.core as mx

    gc.collect()
    before = mx.get_active_memory()
    model = make_block()
    fast_modules.speed_up(model)
    inner = weakref.ref(model.layers[0])
    gc.disable()
    try:
        del model
        # No reference cycle: it is freed at once.
        assert inner() is None
        assert mx.get_active_memory() == before
    finally:
        gc.enable()


def transposed_layers() -> list[Any]:
    """Return all transposed layers in the process."""
    kind = fast_modules._transposed_linear()
    return [each for each in gc.get_objects() if type(each) is kind]


def test_vision_model_decode_makes_no_slow_lookups(slow_lookups: list[str], tmp_path: Path) -> None:
    from PIL import Image

    image = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(image)
    mlx_magic.ask("What is it?", str(image), max_tokens=1)
    slow_lookups.clear()
    result = mlx_magic.ask("What colour?", str(image), max_tokens=4, temperature=0)
    assert result.usage.completion_tokens >= 2
    # Outside the language model lookups are unchanged.
    assert "language_model" in slow_lookups
    assert transposed_layers()
    assert {"layers", "self_attn", "q_proj", "mlp", "lm_head"}.isdisjoint(slow_lookups)


def test_text_model_decode_makes_no_slow_lookups(slow_lookups: list[str]) -> None:
    model = str(smollm2_folder())
    mlx_magic.ask("Hi", model=model, max_tokens=1)
    slow_lookups.clear()
    result = mlx_magic.ask("What is the capital of France?", model=model, max_tokens=4)
    assert result.usage.completion_tokens >= 2
    assert transposed_layers()
    assert {"layers", "self_attn", "q_proj", "mlp"}.isdisjoint(slow_lookups)
    mlx_magic.pool.unload(model)
