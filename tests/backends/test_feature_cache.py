"""The cache of image features: which images the encoder gets, and equal results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.prompt_keys import ImageKeys
from mlx_magic.backends.vision.image_cache.feature_cache import FeatureCache
from mlx_magic.cancellation import Cancelled

mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

SIDE, WIDTH = 4, 3
BYTES = 4 * SIDE * WIDTH
"""Bytes of the features of one image."""


@pytest.fixture(autouse=True)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many images are encoded at once; 8, as on a GPU."""
    count = int(getattr(request, "param", 8))
    monkeypatch.setattr(platform, "images_at_once", lambda: count)
    return count


class Tower(nn.Module):  # type: ignore[misc, name-defined]
    """Returns a row of features for each row of each image, and records batch sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.arange(SIDE * 3 * WIDTH).reshape(SIDE * 3, WIDTH) / 10
        self.asked: list[int] = []

    def __call__(self, pixels: Any, scale: Any = None, **_: Any) -> Any:
        self.asked.append(int(pixels.shape[0]))
        features = pixels.reshape(pixels.shape[0], SIDE, SIDE * 3) @ self.weight
        return features if scale is None else features * scale


class States(Tower):
    """Also returns the hidden states of all layers, as SigLIP does."""

    def __call__(self, pixels: Any, scale: Any = None, **more: Any) -> Any:
        features = super().__call__(pixels, scale, **more)
        return features, features + 1, [features * layer for layer in range(10)]


class Mixing(Tower):
    """Puts all images into one row, as Pixtral does: they cannot be separated."""

    def __call__(self, pixels: Any, scale: Any = None, **more: Any) -> Any:
        features = super().__call__(pixels, scale, **more)
        return features.reshape(1, -1, WIDTH) + mx.mean(features)


class Model(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, tower: Any = None) -> None:
        super().__init__()
        self.vision_tower = tower or Tower()

    @property
    def asked(self) -> list[int]:
        """How many images the encoder got in each call."""
        return list(self.vision_tower.asked)

    def see(self, pixels: Any, **more: Any) -> Any:
        return self.vision_tower(pixels, **more)


def make_pixels(seed: int) -> Any:
    return mx.array(np.random.default_rng(seed).standard_normal((SIDE, SIDE, 3), dtype=np.float32))


def batch(*seeds: int) -> Any:
    return mx.stack([make_pixels(seed) for seed in seeds])


def evaluated(function: Callable[[], Any]) -> Callable[[], Any]:
    def see() -> Any:
        output = function()
        mx.eval(output)
        return output

    return see


def look(features: FeatureCache, model: Model, pixels: Any, **more: Any) -> Any:
    return features.encode(model, evaluated(lambda: model.see(pixels, **more)))


def same(one: Any, other: Any) -> bool:
    return bool(mx.array_equal(one, other).item())


def test_cached_image_is_not_encoded_again() -> None:
    features, model = FeatureCache(10**6), Model()
    first = look(features, model, batch(1))
    again = look(features, model, batch(1))
    assert model.asked == [1]
    assert same(first, again)
    assert same(first, Model().see(batch(1)))
    assert (features.hits, features.misses, features.nbytes) == (1, 1, BYTES)


def test_only_new_images_are_encoded() -> None:
    features, model = FeatureCache(10**6), Model()
    look(features, model, batch(1, 2))
    seen = look(features, model, batch(2, 3))
    assert model.asked == [2, 1]
    assert np.allclose(seen, Model().see(batch(2, 3)), atol=1e-6)
    look(features, model, batch(3))
    seen = look(features, model, batch(3, 1, 3, 2))
    assert model.asked == [2, 1], "in any order, alone, and twice at once"
    assert np.allclose(seen, Model().see(batch(3, 1, 3, 2)), atol=1e-6)
    assert (features.hits, features.misses) == (1 + 1 + 4, 3)


def test_repeated_image_in_one_prompt_is_encoded_once() -> None:
    features, model = FeatureCache(10**6), Model()
    look(features, model, batch(1, 2))
    seen = look(features, model, batch(5, 5, 1))
    assert model.asked == [2, 1]
    assert np.allclose(seen, Model().see(batch(5, 5, 1)), atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        lambda: (batch(1) + 1e-6, {}),
        lambda: (batch(1).astype(mx.float16), {}),
        lambda: (batch(1).transpose(0, 2, 1, 3), {}),
        lambda: (batch(1), {"scale": mx.array([[[2.0]]])}),
        lambda: (batch(1), {"scale": 2.0}),
        lambda: (batch(1), {"grid": mx.array([[1, 4, 4]])}),
        lambda: (batch(1), {"output_hidden_states": True}),
    ],
    ids=["pixels", "type", "turned", "array", "number", "geometry", "option"],
)
def test_any_difference_in_the_input_is_a_cache_miss(other: Callable[[], Any]) -> None:
    features, model = FeatureCache(10**6), Model()
    look(features, model, batch(1))
    pixels, more = other()
    seen = look(features, model, pixels, **more)
    assert model.asked == [1, 1]
    assert same(seen, Model().see(pixels, **more))


def test_per_image_mask_is_part_of_the_key() -> None:
    features, model = FeatureCache(10**6), Model()
    scale = mx.array([1.0, 2.0]).reshape(2, 1, 1)
    look(features, model, batch(1, 2), scale=scale)
    seen = look(features, model, batch(2, 1), scale=scale)
    assert model.asked == [2, 2], "the same images, each with the other's mask"
    assert np.allclose(seen, Model().see(batch(2, 1), scale=scale), atol=1e-6)
    look(features, model, batch(2, 1), scale=scale[::-1])
    assert model.asked == [2, 2]


def test_encoder_that_mixes_images_gets_all_of_them() -> None:
    features, model = FeatureCache(10**6), Model(Mixing())
    for seeds in [(1,), (2,), (1, 2), (2, 1), (1, 2), (1,)]:
        seen = look(features, model, batch(*seeds))
        assert np.allclose(seen, Model(Mixing()).see(batch(*seeds)), atol=1e-6)
    assert model.asked == [1, 1, 2, 2]


def test_patches_with_a_grid_are_cached_as_a_whole() -> None:
    features, model = FeatureCache(10**6), Model()
    grid = mx.array([[1, 2, 1], [1, 2, 1], [1, 1, 1]])
    look(features, model, batch(1, 2, 3, 4, 5), grid=grid)
    look(features, model, batch(1, 2, 3, 4, 5), grid=grid)
    assert model.asked == [5]
    look(features, model, batch(1, 2, 3, 4, 5), grid=grid[::-1])
    assert model.asked == [5, 5]


def test_unused_hidden_states_are_not_cached() -> None:
    def see(model: Model, pixels: Any, layers: Sequence[int]) -> Callable[[], Any]:
        def work() -> Any:
            features, _, states = model.see(pixels)
            return sum((states[layer] for layer in layers), features)

        return evaluated(work)

    features, model = FeatureCache(10**6), Model(States())
    one = features.encode(model, see(model, batch(1), [-2]))
    assert features.nbytes == 3 * BYTES, "two that every caller is given, and one layer's state"
    assert same(features.encode(model, see(model, batch(1), [-2])), one)
    assert model.asked == [1]
    # Another layer is needed: the image is encoded again.
    other = features.encode(model, see(model, batch(1), [3]))
    assert same(other, see(Model(States()), batch(1), [3])())
    assert same(features.encode(model, see(model, batch(1), [5])), see(model, batch(1), [5])())


def test_hidden_states_concatenated_directly_are_correct() -> None:
    def see(model: Model) -> Callable[[], Any]:
        # MLX unpacks such a list in C++, so the cache cannot observe it.
        return evaluated(lambda: mx.concatenate(model.see(batch(1))[2]))

    features, model = FeatureCache(10**6), Model(States())
    looks = [features.encode(model, see(model)) for _ in range(3)]
    assert all(same(each, see(Model(States()))()) for each in looks)
    assert model.asked[2:] == [], "after the second, nothing is encoded again"


def test_feature_cache_is_bounded_and_evicts_the_least_recently_used() -> None:
    features, model = FeatureCache(3 * BYTES), Model()
    for seed in (1, 2, 3, 1, 4):
        look(features, model, batch(seed))
        assert features.nbytes <= 3 * BYTES
    look(features, model, batch(1))
    assert model.asked == [1] * 4
    look(features, model, batch(2))
    assert model.asked == [1] * 5, "2 was not used for longest"
    features.clear()
    assert features.nbytes == 0
    assert look(FeatureCache(BYTES - 1), model, batch(1)) is not None


@pytest.mark.parametrize("error", [RuntimeError, Cancelled])
def test_failed_encode_caches_nothing_and_restores_the_model(
    error: type[Exception],
) -> None:
    features, model = FeatureCache(10**6), Model()

    def see() -> Any:
        assert "vision_tower" in vars(model)
        mx.eval(model.see(batch(1)))
        raise error

    before = vars(model).copy()
    with pytest.raises(error):
        features.encode(model, see)
    assert vars(model) == before
    assert isinstance(model.vision_tower, Tower)
    assert features.nbytes == 0
    look(features, model, batch(1))
    assert model.asked == [1, 1]


def test_model_is_restored_and_keeps_its_weights() -> None:
    features, model = FeatureCache(10**6), Model()
    tower = model.vision_tower

    def see() -> Any:
        assert model.vision_tower is not tower
        assert model.vision_tower.weight is tower.weight, "what it has can be looked at"
        assert list(model.parameters()) == ["vision_tower"]
        return evaluated(lambda: model.see(batch(1)))()

    features.encode(model, see)
    assert model.vision_tower is tower
    assert "vision_tower" not in vars(model)


def test_nested_image_encoder_is_found() -> None:
    class Outer(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

    outer = Outer()
    features = FeatureCache(10**6)
    for _ in range(2):
        features.encode(outer, evaluated(lambda: outer.model.see(batch(1))))
    assert outer.model.asked == [1]


def test_arguments_without_a_key_bypass_the_cache() -> None:
    features, model = FeatureCache(10**6), Model()
    for _ in range(2):
        look(features, model, batch(1), config=object())
    assert model.asked == [1, 1]
    assert features.nbytes == 0


def test_cached_features_are_evaluated_and_usable_on_another_thread() -> None:
    features, model = FeatureCache(10**6), Model()
    look(features, model, batch(1, 2))
    pixels = batch(2)
    mx.eval(pixels)
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(np.asarray(look(features, model, pixels)))
    )
    thread.start()
    thread.join()
    assert np.allclose(found[0], Model().see(batch(2)), atol=1e-6)
    assert model.asked == [2]


@pytest.mark.parametrize("at_once", [1, 2, 3, 8], indirect=True)
@pytest.mark.parametrize("tower", [Tower, Mixing, States])
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    looks=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=7), max_size=6),
    room=st.integers(0, 6),
)
def test_any_sequence_of_images_gives_the_features_of_no_cache(
    at_once: int, tower: type[Tower], looks: list[list[int]], room: int
) -> None:
    def seen_by(model: Model, *seeds: int) -> Any:
        output = model.see(batch(*seeds))
        return output[0] if tower is States else output

    features, model = FeatureCache(room * BYTES), Model(tower())
    for seeds in looks:
        seen = features.encode(model, evaluated(lambda seeds=seeds: seen_by(model, *seeds)))  # type: ignore[misc]
        assert np.allclose(seen, seen_by(Model(tower()), *seeds), atol=1e-5)
        assert features.nbytes <= room * BYTES
    if tower is not Mixing:
        assert features.hits + features.misses == sum(len(seeds) for seeds in looks)


Calls = list[tuple[int, int]]


def stop_at(calls: Calls, at: int) -> Callable[[int, int], None]:
    """Cancel when group number `at` starts."""

    def between(done: int, there: int) -> None:
        calls.append((done, there))
        if len(calls) == at:
            raise Cancelled

    return between


@pytest.mark.parametrize(
    ("at_once", "groups"),
    [(1, [2, 1, 1, 1, 1]), (4, [4, 2]), (8, [6])],
    indirect=["at_once"],
)
def test_new_images_are_encoded_in_groups(at_once: int, groups: list[int]) -> None:
    features, model = FeatureCache(10**6), Model()
    calls: Calls = []
    see = evaluated(lambda: model.see(batch(1, 2, 3, 4, 5, 6)))
    assert np.allclose(
        features.encode(model, see, stop_at(calls, 0)), Model().see(batch(1, 2, 3, 4, 5, 6)), 1e-5
    )
    assert model.asked == groups
    assert calls == [(sum(groups[:at]), 6) for at in range(len(groups))]
    # Cached images count as done; a probed encoder gets groups of `at_once` immediately.
    calls.clear()
    pixels = batch(9, 1, 8, 2, 7)
    features.encode(model, evaluated(lambda: model.see(pixels)), stop_at(calls, 0))
    assert calls == ([(2, 5), (3, 5), (4, 5)] if at_once == 1 else [(2, 5)])


@pytest.mark.parametrize("at_once", [1], indirect=True)
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_cancelled_encode_stops_after_the_current_group(at_once: int, at: int) -> None:
    features, model = FeatureCache(10**6), Model()
    calls: Calls = []
    before = vars(model).copy()
    with pytest.raises(Cancelled):
        features.encode(
            model, evaluated(lambda: model.see(batch(1, 2, 3, 4, 5, 6))), stop_at(calls, at)
        )
    assert model.asked == [2, 1, 1, 1, 1][: at - 1]
    assert features.nbytes == 0
    assert vars(model) == before
    assert same(look(features, model, batch(1)), Model().see(batch(1)))


@pytest.mark.parametrize("at_once", [1], indirect=True)
def test_each_group_is_evaluated_before_the_next_starts(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, model, order = FeatureCache(10**6), Model(), []
    evaluate = mx.eval

    def marking(*arrays: Any) -> None:
        order.append("done")
        evaluate(*arrays)

    monkeypatch.setattr(mx, "eval", marking)

    def between(done: int, there: int) -> None:
        order.append(f"from {done}")

    features.encode(model, lambda: model.see(batch(1, 2, 3, 4)), between)
    assert order[:5] == ["from 0", "done", "from 2", "done", "from 3"]


@pytest.mark.parametrize("at_once", [1], indirect=True)
def test_encoder_that_mixes_images_is_detected_at_the_first_group(at_once: int) -> None:
    features, model = FeatureCache(10**6), Model(Mixing())
    for _ in range(2):
        seen = look(features, model, batch(1, 2, 3, 4))
        assert np.allclose(seen, Model(Mixing()).see(batch(1, 2, 3, 4)), atol=1e-6)
    assert model.asked == [2, 4]
    look(features, model, batch(5, 6, 7))
    assert model.asked == [2, 4, 3], "it is not tried again"


@pytest.mark.parametrize("at_once", [1], indirect=True)
def test_model_that_encodes_one_image_at_a_time_can_be_cancelled_between(
    at_once: int,
) -> None:
    features, model = FeatureCache(10**6), Model()
    calls: Calls = []

    def see() -> Any:
        return mx.concatenate([model.see(batch(seed)) for seed in range(6)])

    with pytest.raises(Cancelled):
        features.encode(model, see, stop_at(calls, 4))
    assert model.asked == [1, 1, 1]
    assert calls == [(0, 1), (1, 2), (2, 3), (3, 4)]


def image_keys_of(*seeds: int, **more: Any) -> ImageKeys:
    found = ImageKeys.of({"input_ids": mx.array([[1]]), "pixel_values": batch(*seeds), **more})
    assert found is not None
    return found


def encode_with_keys(features: FeatureCache, model: Model, *seeds: int, **more: Any) -> Any:
    """Encode as a request does, whose images have keys."""
    see = evaluated(lambda: model.see(batch(*seeds), **more))
    return features.encode(model, see, image_keys=image_keys_of(*seeds))


def test_images_with_keys_are_cached_alone_and_beside_others() -> None:
    features, model = FeatureCache(10**6), Model()
    encode_with_keys(features, model, 1)
    encode_with_keys(features, model, 1, 2)
    seen = encode_with_keys(features, model, 2, 3, 1)
    assert model.asked == [1, 2, 1], "a tower is asked as a whole once, to see that it is of rows"
    assert np.allclose(seen, Model().see(batch(2, 3, 1)), atol=1e-6)
    again = encode_with_keys(features, model, 3)
    assert same(again, seen[1:2])
    assert len(model.asked) == 3


def test_other_encoder_options_are_a_cache_miss() -> None:
    features, model = FeatureCache(10**6), Model()
    encode_with_keys(features, model, 1)
    encode_with_keys(features, model, 1, scale=2)
    assert model.asked == [1, 1]


def test_encoder_called_twice_for_one_image_keeps_both_results() -> None:
    features, model = FeatureCache(10**6), Model()

    def see() -> Any:
        return mx.concatenate([model.see(batch(1)), model.see(batch(1) * 2)])

    for _ in range(2):
        seen = features.encode(model, evaluated(see), image_keys=image_keys_of(1))
        assert np.allclose(seen[1], 2 * seen[0], atol=1e-5)
    assert model.asked == [1, 1]


def test_encoder_called_per_image_uses_the_cache() -> None:
    features, model = FeatureCache(10**6), Model()

    def see(*seeds: int) -> Any:
        def each() -> Any:
            return mx.concatenate([model.see(batch(seed)) for seed in seeds])

        return features.encode(model, evaluated(each), image_keys=image_keys_of(*seeds))

    see(1, 2)
    seen = see(2, 3)
    assert model.asked == [1, 1, 1]
    assert np.allclose(seen, Model().see(batch(2, 3)), atol=1e-6)
