"""An IPython shell without a kernel, and a scripted session behind the magics."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from traitlets.config import Config

import mlx_magic.demo
from mlx_magic.testing import ScriptedBackend
from tests import checkpoints
from tests.scripted_default import scripted_default


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """A shell with the extension loaded, in a folder of its own."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config)
    shell.run_line_magic("load_ext", "mlx_magic")
    shell.user_ns["img"] = Image.new("RGB", (40, 20), "red")
    yield shell
    shell.run_line_magic("unload_ext", "mlx_magic")
    shell.restore_sys_module_state()
    # They would keep the shell alive until the end of all tests, one second each.
    atexit.unregister(shell.atexit_operations)
    atexit.unregister(shell.magics_manager.registry["ScriptMagics"].kill_bg_processes)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedBackend]:
    """The backend behind every model; the bundled one is a folder without real weights."""
    folder = checkpoints.good(tmp_path / "bundled")
    monkeypatch.setattr(mlx_magic.demo, "folder", lambda: folder)
    with scripted_default("It is **red**.") as script:
        yield script
