"""A map in real kernels: its view, Pause, Cancel, interrupt, and what the notebook keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import checkpoints

from .kernel_client import Client

pytestmark = pytest.mark.kernel

SETUP = """
%load_ext mlx_magic
import mlx_magic
from pathlib import Path
from PIL import Image
from mlx_magic.testing import use_scripted
Path("shots").mkdir(exist_ok=True)
for at in range(12):
    Image.new("RGB", (8, 6), (at, 9, 9)).save(f"shots/{at}.png")
"""
CELL = "%%vision shots --map --no-journal -o table --max-tokens 1000000\nWhat is this?"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.good(tmp_path_factory.mktemp("model"))


@pytest.fixture
def client(client: Client, model: Path) -> Client:
    """Give the shared kernel the magics and images."""
    assert client.run(SETUP, timeout=60).status == "ok"
    assert client.run(f"%config VisionMagics.model = {str(model)!r}").status == "ok"
    client.run("table = None")
    return client


def test_map_leaves_one_static_table(client: Client) -> None:
    client.run("script = use_scripted('A dot.')")
    for code in (CELL, "mlx_magic.map('What is this?', 'shots', journal=False)"):
        cell = client.run(code)
        assert (cell.status, cell.stderr) == ("ok", ""), cell.summary()
        [kept] = [
            data for data in cell.kept if "text/html" in data and "<table>" in data["text/html"]
        ]
        assert "shots/9.png  A dot." in kept["text/plain"]
        assert "… and 2 more rows in .frame" in kept["text/plain"]
        assert kept["text/html"].count("<img ") == 10
    assert client.value("len(table), table[3].result.text") == "12 A dot."


def test_click_cancels_a_map_and_the_notebook_goes_on(
    client: Client, subshell_id: str | None
) -> None:
    client.run("script = use_scripted('A dot.', hold='decode')")
    asking = client.start(CELL)
    button = client.wait_for_button(asking)
    client.click(button, subshell_id)
    following = client.run("print('next')")
    client.finish(asking)
    assert (asking.status, asking.stderr) == ("ok", ""), asking.summary()
    assert following.stdout == "next\n"
    assert client.value("len(table), table.done") == "0 True"


def test_pause_and_resume_of_a_map(client: Client, subshell_id: str | None) -> None:
    client.run("script = use_scripted('A dot.', hold='prefill')")
    asking = client.start(CELL)
    client.click(client.wait_for_button(asking, "Pause"), subshell_id)
    resume = client.wait_for_button(asking, "Resume")
    client.wait_for_words(asking, "paused")
    client.click(resume, subshell_id)
    client.wait_for_button(asking, "Pause")
    client.click(client.wait_for_button(asking), subshell_id)
    client.finish(asking)
    assert asking.status == "ok", asking.summary()


def test_interrupt_of_a_map_keeps_its_rows_and_stops_the_run(client: Client) -> None:
    client.run("script = use_scripted('A dot.', hold='decode')")
    for code in (CELL, f"get_ipython().run_cell_magic('vision', *{CELL[8:].split(chr(10))!r})"):
        asking = client.start(code)
        client.wait_for_button(asking)
        client.interrupt()
        client.finish(asking)
        assert asking.error == "KeyboardInterrupt", asking.summary()
        assert client.value("table.done") == "True"
