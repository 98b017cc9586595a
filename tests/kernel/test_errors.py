"""Errors and interrupts of cells are one line, also for a program that runs the notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import checkpoints

from .kernel_client import Cell, Client

pytestmark = pytest.mark.kernel

SETUP = """
%load_ext mlx_magic
import mlx_magic
from mlx_magic.testing import use_scripted
"""
INTERRUPTED = {
    "awaited": "%%vision\nWhat?",
    "timed": "%%time\n%%vision\nWhat?",
    "from code": "for _ in range(2):\n    get_ipython().run_cell_magic('vision', '', 'What?')",
}
MISTAKES = {
    "awaited": "%%vision nofile.png\nWhat?",
    "captured": "%%capture\n%%vision nofile.png\nWhat?",
    "timed": "%%time\n%%vision nofile.png\nWhat?",
    "from code": "get_ipython().run_cell_magic('vision', 'nofile.png', 'What?')",
    "line": "%vision load nofile.png/",
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.good(tmp_path_factory.mktemp("model"))


@pytest.fixture
def client(client: Client, model: Path) -> Client:
    if "use_scripted" not in client.run("print(*globals())").stdout.split():
        assert client.run(SETUP).status == "ok"
    assert client.run(f"%config VisionMagics.model = {str(model)!r}").status == "ok"
    client.run("script = use_scripted('Two red squares.', hold='decode')")
    return client


def error_of(cell: Cell) -> dict[str, Any]:
    """Return the only error output of a cell."""
    [error] = [m["content"] for m in cell.messages if m["msg_type"] == "error"]
    return dict(error)


@pytest.mark.parametrize("way", INTERRUPTED)
def test_interrupt_of_a_cell_shows_no_frames(client: Client, way: str) -> None:
    cell = client.start(INTERRUPTED[way])
    client.wait_for_button(cell)
    client.interrupt()
    client.finish(cell)
    assert error_of(cell)["traceback"] == ["KeyboardInterrupt"], cell.summary()
    assert cell.reply is not None
    assert cell.reply["ename"] == "KeyboardInterrupt"


@pytest.mark.parametrize("way", MISTAKES)
def test_mistake_in_a_cell_is_an_error_output_of_one_line(client: Client, way: str) -> None:
    cell = client.run(MISTAKES[way])
    error = error_of(cell)
    assert error["ename"] == "UsageError"
    assert error["traceback"] == [f"UsageError: {error['evalue']}"]
    assert "nofile.png" in error["evalue"]
    assert cell.stderr == ""


def test_failure_of_a_model_in_a_cell_is_one_line(client: Client) -> None:
    client.run("script.release(); script.error = ZeroDivisionError('in the model')")
    cell = client.run("%%vision\nWhat?")
    [line] = error_of(cell)["traceback"]
    assert line.startswith("GenerationError: ")
    assert "ZeroDivisionError: in the model" in line


def test_error_from_python_shows_the_cell_and_the_function(client: Client) -> None:
    # In a cell of its own: the error's cell is one line.
    client.run("import mlx_magic")
    cell = client.run("mlx_magic.ask('What?', 'nofile.png')", timeout=60)
    shown = "\n".join(error_of(cell)["traceback"])
    assert shown.count("mlx_magic/") == 1
    assert "mlx_magic/api.py" in shown
    assert "direct cause" not in shown


def test_usage_errors_of_other_magics_are_printed_as_before(client: Client) -> None:
    cell = client.run("%timeit -zzz")
    assert "UsageError" in cell.stderr
    client.run("%unload_ext mlx_magic")
    assert client.value("'show_usage_error' in vars(get_ipython())") == "False"
    client.run("%load_ext mlx_magic")
