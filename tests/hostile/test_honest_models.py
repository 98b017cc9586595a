"""Ordinary checkpoints of all architectures load under the guard; only checked files are read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mlx_magic.backends.base import Backend
from mlx_magic.backends.loading import remote_code_guard
from mlx_magic.cancellation import CancelToken
from mlx_magic.models.checkpoints import checkpoint
from mlx_magic.models.checkpoints import remote_code as checkpoints_remote_code
from tools.tiny_models.spec import TinyModel, all_models, build, shrunk

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(300),
    # Of tiny models; as an error mlx-vlm would take it for a failure.
    pytest.mark.filterwarnings("ignore:At least one mel filter"),
]

MODELS = [model for model in all_models() if not model.variant]


class Opened:
    """Files of one folder opened in this process; an audit hook cannot be removed."""

    folder: str | None = None
    names: ClassVar[set[str]] = set()

    @staticmethod
    def hook(event: str, args: tuple[Any, ...]) -> None:
        """Note what is opened."""
        folder = Opened.folder
        if event == "open" and folder is not None and isinstance(args[0], str | bytes):
            path = os.fsdecode(args[0])
            if path.startswith(folder + os.sep):
                Opened.names.add(os.path.relpath(path, folder))


@pytest.fixture(scope="module")
def opened() -> Iterator[type[Opened]]:
    """Who notes."""
    sys.addaudithook(Opened.hook)
    yield Opened
    Opened.folder = None


def backend_for(kind: str) -> Backend:
    from mlx_magic.backends.text.backend import TextBackend
    from mlx_magic.backends.vision.backend import VisionBackend

    return VisionBackend() if kind == "vision" else TextBackend()


def ready(kind: str) -> None:
    """Import what a load of this kind imports."""
    from mlx_magic.backends.device import platform

    platform.start()
    if kind == "vision":
        import mlx_vlm  # noqa: F401
    else:
        import mlx_lm  # noqa: F401


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_ordinary_model_loads_and_opens_only_checked_files(
    model: TinyModel, tmp_path: Path, opened: type[Opened]
) -> None:
    folder = tmp_path / "m"
    build(model, folder)
    shrunk(model.architecture)
    found = checkpoint.inspect(folder, "m")
    assert found.wants_code == ()
    ready(found.kind)
    opened.folder, opened.names = str(folder), set()
    steps = backend_for(found.kind).load(
        found, trust_remote_code=False, cancel=CancelToken(), progress=lambda *_: None
    )
    load = remote_code_guard.guarded(steps, found, allowed=False)
    try:
        while True:
            next(load)
    except StopIteration as end:
        end.value.close()
    finally:
        opened.folder = None
    assert "config.json" in opened.names
    for name in opened.names:
        assert (
            name.endswith(".safetensors") or checkpoints_remote_code.limits_of(name) is not None
        ), name
