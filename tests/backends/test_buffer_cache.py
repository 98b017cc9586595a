"""The limit of MLX's buffer cache follows the loaded models and stays small."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.backends.device import platform
from mlx_magic.backends.device.platform import LEAST, cache_limit
from mlx_magic.session import Session

GB = 2**30
BYTES = st.integers(0, 10**13)


@pytest.mark.parametrize(
    ("resident", "memory", "limit"),
    [
        (0, 16 * GB, LEAST),
        (12_000_000, 16 * GB, LEAST),
        (4 * GB, 64 * GB, GB),
        (40 * GB, 64 * GB, 8 * GB),
        (4 * GB, 0, GB),
        (0, 8 * 1024, 1024),
    ],
    ids=["none", "bundled", "2B", "bounded", "unknown memory", "tiny memory"],
)
def test_limit_grows_with_model_size(resident: int, memory: int, limit: int) -> None:
    assert cache_limit(resident, memory) == limit


@given(BYTES, BYTES, st.integers(1, 10**13))
def test_limit_grows_with_the_number_of_models_and_is_bounded_by_memory(
    one: int, other: int, memory: int
) -> None:
    small, large = sorted((one, other))
    assert cache_limit(small, memory) <= cache_limit(large, memory) <= memory / 8
    assert cache_limit(small, 0) >= LEAST


def test_limit_is_set_on_load_and_unload(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(platform, "keep_buffers", told.append)
    info = session.pool.load("demo")
    assert told == [info.nbytes]
    session.pool.unload("demo")
    assert told == [info.nbytes, 0]


def test_setting_the_limit_does_not_import_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    mx = pytest.importorskip("mlx.core")
    told: list[int] = []
    monkeypatch.setattr(mx, "set_cache_limit", told.append)
    platform.keep_buffers(4 * GB)
    assert told == [cache_limit(4 * GB, platform.total_memory())]
    monkeypatch.delitem(platform.sys.modules, "mlx.core")  # type: ignore[attr-defined]
    platform.keep_buffers(0)
    assert len(told) == 1


@pytest.fixture
def kept() -> Generator[Any, None, None]:
    """MLX; its cache limit is restored afterwards."""
    mx = pytest.importorskip("mlx.core")
    before = mx.set_cache_limit(GB)
    yield mx
    mx.set_cache_limit(before)


def test_freed_buffers_are_cached_up_to_the_limit(kept: Any) -> None:
    platform.keep_buffers(0)
    for side in (1000, 4000):
        made = kept.ones((side, side)) + 1
        kept.eval(made)
        del made
    kept.eval(kept.ones((10, 10)) + 1)
    assert kept.get_cache_memory() <= LEAST
