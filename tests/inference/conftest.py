"""A session whose models follow a script."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlx_magic.backends.device import platform
from mlx_magic.engine.engine import Engine
from mlx_magic.session import Session
from mlx_magic.testing import ScriptedBackend, scripted_session


@pytest.fixture
def script() -> ScriptedBackend:
    """The backend behind every model."""
    return ScriptedBackend("It is a red circle.")


@pytest.fixture
def session(script: ScriptedBackend) -> Iterator[Session]:
    """What cells, panel and code share."""
    session = scripted_session(backend=script)
    yield session
    script.release()
    session.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A thread for MLX."""
    engine = Engine(at_end=platform.release_thread)
    engine.call(platform.start).result(60)
    yield engine
    engine.close()
