"""Tiny checkpoints, built once a session, and the images that they are asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_magic.backends.device import platform
from tools.model_table.questions import draw
from tools.tiny_models.spec import TinyModel, build, find, shrunk

Build = Callable[[str], tuple[TinyModel, Path]]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The images, by name."""
    return draw(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds a checkpoint; returns what it is, and its folder."""
    platform.start()
    folder = tmp_path_factory.mktemp("tiny")

    def built(name: str) -> tuple[TinyModel, Path]:
        model = find(name)
        place = folder / name
        if not place.exists():
            build(model, place)
        shrunk(model.architecture)
        return model, place

    return built


@pytest.fixture(autouse=True)
def no_remembered_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start each test without remembered verdicts on weights."""
    monkeypatch.setenv("MLX_MAGIC_CACHE", str(tmp_path / "cache"))
    yield
    import mlx.core as mx

    mx.clear_cache()
