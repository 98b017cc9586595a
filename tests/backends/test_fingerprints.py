"""Digests and fingerprints: equal for the same bytes, type and shape, and for nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.backends.prefix_cache import fingerprints
from mlx_magic.backends.prefix_cache.fingerprints import GLANCE, Fingerprint, digest

pytestmark = pytest.mark.usefixtures("mlx")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the bytes of each array that is hashed."""
    found: list[int] = []
    feed = fingerprints._feed

    def noted(state: Any, parts: Sequence[Any]) -> None:
        found.extend(part.nbytes for part in parts if isinstance(part, np.ndarray))
        feed(state, parts)

    monkeypatch.setattr(fingerprints, "_feed", noted)
    return found


def pixels(seed: int = 0, shape: tuple[int, ...] = (1, 90, 90, 3)) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_digest_includes_dtype_and_shape() -> None:
    import mlx.core as mx

    one = mx.array(pixels())
    views = [one, one.reshape(90, 90, 3), one.view(mx.int32), one.transpose(0, 2, 1, 3)]
    narrow = [one.astype(mx.bfloat16), one.astype(mx.float16)]
    for kind in (digest, Fingerprint):
        assert len({kind(view) for view in [*views, *narrow]}) == 6
        assert kind(one) == kind(mx.array(pixels()))


def test_images_that_differ_in_a_sample_are_not_hashed_fully(hashed: list[int]) -> None:
    names = {Fingerprint(pixels(seed)) for seed in range(5)}
    assert len(names) == 5
    assert Fingerprint(pixels(9)) not in names
    assert max(hashed) <= 8 * GLANCE


def test_images_with_equal_samples_are_hashed_fully_once_each(hashed: list[int]) -> None:
    one, again = Fingerprint(pixels()), Fingerprint(pixels())
    assert one == again
    assert hash(one) == hash(again)
    assert one in {again: 1}
    assert hashed.count(pixels().nbytes) == 2


@given(at=st.integers(0, 90 * 90 * 3 - 1))
def test_single_different_value_changes_the_fingerprint(at: int) -> None:
    other = pixels()
    other.reshape(-1)[at] += 1
    assert Fingerprint(pixels()) != Fingerprint(other)


def test_settled_fingerprint_releases_its_image_and_is_equal() -> None:
    array = pixels()
    one = Fingerprint({"pixel_values": array}, "more")
    held = sys.getrefcount(array)
    one.settle()
    assert sys.getrefcount(array) == held - 1
    assert one == Fingerprint({"pixel_values": pixels()}, "more")
    assert one != Fingerprint({"pixel_values": pixels()}, "less")
    assert one.settle() == digest({"pixel_values": pixels()}, "more")


def test_value_without_a_digest_has_no_fingerprint() -> None:
    for part in (object(), np.array([object()]), [1, object()]):
        for kind in (digest, Fingerprint):
            with pytest.raises(TypeError):
                kind(part)
