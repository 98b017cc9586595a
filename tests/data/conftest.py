"""A scripted session, a model, and a folder of small images for maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from mlx_magic.testing import ScriptedBackend
from tests import checkpoints
from tests.scripted_default import scripted_default


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedBackend]:
    """The backend behind `mlx_magic.map`; the working directory is a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    with scripted_default("One two.") as script:
        yield script


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoints.good(tmp_path / "model")


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that draws a folder of images, each of another color."""

    def drawn(count: int, name: str = "images") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for at in range(count):
            Image.new("RGB", (6, 4), (at % 256, at // 256, 9)).save(folder / f"{at}.png")
        return folder

    return drawn
