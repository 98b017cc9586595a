"""Order of the tests, the BLAS they use, and isolation from the user's own settings."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image, ImageDraw

from mlx_magic.backends.device import platform
from mlx_magic.backends.loading import fast_modules
from mlx_magic.engine.engine import Engine
from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.session import Session
from mlx_magic.testing import ManualClock, ScriptedBackend, scripted_session

# Tests that run side by side share the processor's cores.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (cores or 1) // int(workers))))

# Before any of them imports MLX: afterwards it would be too late, and forty times as slow.
platform.prepare()

# The same examples in each run, and no clock of a busy machine. `HYPOTHESIS_PROFILE=default` looks
# for new ones.
settings.register_profile("tests", deadline=None, derandomize=True)
if "HYPOTHESIS_PROFILE" not in os.environ:
    settings.load_profile("tests")

_HOME = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Hide the user's aliases and models, also from started kernels."""
    home = config.stash[_HOME] = Path(tempfile.mkdtemp(prefix="mlx-magic-tests-"))
    os.environ["MLX_MAGIC_CONFIG"] = str(home / "config")
    os.environ["MLX_MAGIC_CACHE"] = str(home / "cache")
    os.environ["HF_HUB_CACHE"] = str(home / "hub")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the temporary folders."""
    shutil.rmtree(config.stash[_HOME], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run real models first, the architectures late and the browser last.

    Side by side, a long file that began last would be waited for. The architectures import
    every model of both libraries, and each search for cycles takes longer afterwards. While
    Playwright's loop runs, no other event loop can.
    """
    items.sort(key=lambda item: item.get_closest_marker("model") is None)
    items.sort(key=lambda item: "tests/architectures/" in item.nodeid)
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


@pytest.fixture(autouse=True, scope="session")
def modules_are_sped_up() -> Iterator[None]:
    """Speed up modules as on a GPU, so that answers are compared with these on a CPU, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_modules, "is_worth", lambda: True)
        yield


@pytest.fixture
def templates_render_here() -> Iterator[None]:
    """Render templates on this thread, so that a request takes the same slices each time."""
    from mlx_magic.backends.text import adapter
    from mlx_magic.backends.vision import inputs as vision_inputs

    with pytest.MonkeyPatch.context() as patch:
        for module in (adapter, vision_inputs):
            patch.setattr(module, "is_known", lambda *things: False)
        yield


@pytest.fixture(scope="module")
def mlx() -> None:
    """MLX, set up as for a model."""
    platform.start()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that is set by hand."""
    return ManualClock(100.0)


@pytest.fixture
def generation(clock: ManualClock) -> Generation:
    """A question that has not started."""
    return Generation(GenerationRequest(prompt="What?"), clock=clock)


@pytest.fixture(scope="module")
def circle() -> Image.Image:
    """A red circle on white."""
    image = Image.new("RGB", (200, 150), "white")
    ImageDraw.Draw(image).ellipse((60, 30, 140, 110), fill="red")
    return image


@pytest.fixture
def script() -> ScriptedBackend:
    """The scripted backend of `session`."""
    return ScriptedBackend("It is a red circle.")


@pytest.fixture
def session(script: ScriptedBackend) -> Iterator[Session]:
    """A session with scripted models."""
    session = scripted_session(backend=script)
    yield session
    script.release()
    session.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine with an inference thread."""
    engine = Engine(at_end=platform.release_thread)
    engine.call(platform.start).result(60)
    yield engine
    engine.close()
