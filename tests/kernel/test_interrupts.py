"""An interrupt at any line of a cell stops it, keeps its text and leaves nothing behind.

The lines are those of mlx-magic on the thread that runs cells. `MLX_MAGIC_INTERRUPTS=1000` tries
1,000 of them instead of eight a way, in the oldest and the newest kernel.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import checkpoints

from .kernel_client import Client

pytestmark = pytest.mark.kernel

MOMENTS = int(os.environ.get("MLX_MAGIC_INTERRUPTS", "8"))

SETUP = """
import signal, sys, threading, time
%load_ext mlx_magic
from PIL import Image
from mlx_magic import default_session
from mlx_magic.testing import use_scripted
from ipywidgets.widgets.widget import _instances
img = Image.new("RGB", (40, 20), "red")

CELLS = {"awaited", "vision_cell"}

def trace(frame, event, argument):
    name = frame.f_globals.get("__name__", "")
    if not name.startswith("mlx_magic"):
        return None
    if name == "mlx_magic.notebook.magics" and frame.f_code.co_name in CELLS:
        # Between two stretches of a cell that awaits the kernel runs code that is not its own.
        inside[0] = event != "return"
    if event == "line" and inside[0]:
        seen[0] += 1
        if seen[0] == moment:
            begun.append(bool(works))
            signal.raise_signal(signal.SIGINT)
    return trace

def interrupt_at(line):
    global moment, seen, begun, inside, answer, before, works
    moment, seen, begun, inside, answer = line, [0], [], [False], None
    before = set(_instances)
    # Not by its lock, which the line that is interrupted may hold.
    works = default_session.current()._running._tasks
    sys.settrace(trace)

def left():
    sys.settrace(None)
    end = time.monotonic() + 10
    while default_session.current().running and time.monotonic() < end:
        time.sleep(0.01)
    return len(default_session.current().running)
"""
CELL = "%%vision img -o answer --max-tokens 1000000\nWhat is this?"
WAYS = {
    "awaited": CELL,
    "nested": f"%%time\n{CELL}",
    "from code": "get_ipython().run_cell_magic('vision', 'img -o answer', 'What is this?')",
}


@pytest.fixture(scope="session", params=["6.29.5", "7.4.0"])
def version(request: pytest.FixtureRequest) -> str:
    """Version of the kernel's ipykernel: each moment takes half a second."""
    return str(request.param)


@pytest.fixture
def client(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Client:
    if "interrupt_at" not in client.run("print(*globals())").stdout.split():
        assert client.run(SETUP).status == "ok"
    model: Path = checkpoints.good(tmp_path_factory.mktemp("model"))
    assert client.run(f"%config VisionMagics.model = {str(model)!r}").status == "ok"
    return client


def lines_of(client: Client, code: str) -> int:
    """Count the lines of an answer that ends by itself; of an endless one there are more."""
    client.run("script = use_scripted('Two red squares.')")
    client.run("interrupt_at(0)")
    assert client.run(code).status == "ok"
    return int(client.value("(sys.settrace(None), seen[0])[1]"))


@pytest.mark.parametrize("way", WAYS)
def test_interrupt_at_any_line_stops_an_endless_answer_and_keeps_its_text(
    client: Client, way: str
) -> None:
    last = lines_of(client, WAYS[way])
    assert last > 300
    client.run("script = use_scripted('Two red squares.', hold='decode')")
    for moment in sorted({1 + at * last // MOMENTS for at in range(MOMENTS)}):
        client.run(f"interrupt_at({moment})")
        cell = client.run(WAYS[way])
        running, begun, kept = eval(client.value("[left(), begun, answer is not None]"))
        assert (cell.status, running, len(begun)) == ("error", 0, 1), (moment, cell.summary())
        assert "KeyboardInterrupt" in cell.error, (moment, cell.summary())
        assert "CancelledError" not in cell.error
        assert kept >= begun[0], (moment, cell.summary())
        client.wait_for(
            lambda: client.value("len(set(_instances) - before)") == "0",
            f"the end of the view that was interrupted at {moment}",
        )
    client.run("script.release()")


@pytest.mark.parametrize("way", WAYS)
def test_interrupt_at_any_line_keeps_a_finished_answer(client: Client, way: str) -> None:
    last = lines_of(client, WAYS[way])
    late = 0
    for moment in sorted({1 + at * last // MOMENTS for at in range(MOMENTS)}):
        client.run(f"interrupt_at({moment})")
        cell = client.run(WAYS[way])
        running, begun, kept = eval(client.value("[left(), begun, answer is not None]"))
        assert running == 0
        if cell.status == "ok":
            # It came when all was done, or the answer took fewer lines this time.
            late += 1
            assert kept, (moment, cell.summary())
            continue
        assert "KeyboardInterrupt" in cell.error, (moment, cell.summary())
        assert kept >= begun[0], (moment, cell.summary())
    assert late <= MOMENTS // 4
