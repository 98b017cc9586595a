"""Clicks and interrupts reach a running cell of any kind, on each ipykernel."""

from __future__ import annotations

import pytest

from .kernel_client import Client

pytestmark = pytest.mark.kernel

# A job that runs until somebody cancels it, and the two ways in which a cell waits for one.
SETUP = """
import concurrent.futures, threading
import ipywidgets as widgets
from IPython.display import display
from mlx_magic.interrupts import deferred
from mlx_magic.notebook.kernel.click_routing import ClickRoute, uninstall, wait_async, wait_blocking

class Job:
    def __init__(self):
        self.cancelled = threading.Event()
        self.future = concurrent.futures.Future()
        self.button = widgets.Button(description="Cancel")
        self.ticks = 0
        self.thread = threading.Thread(target=self.work, daemon=True)
    def work(self):
        self.future.set_result("cancelled" if self.cancelled.wait(30) else "ran to its end")
    def tick(self):
        self.ticks += 1

def show(job, route):
    assert route.works, route.reason
    display(job.button)
    job.thread.start()

def end(job):
    job.button.close()
    print(job.future.result())

async def awaited():
    global job
    job = Job()
    with deferred() as interrupt, ClickRoute(awaited=True) as route:
        with route.watch(job.button, job.cancelled.set):
            show(job, route)
            await wait_async(job.future, job.tick, interrupt)
        if not interrupt.came:
            end(job)

def blocked():
    global job
    job = Job()
    with deferred() as interrupt, ClickRoute(awaited=False) as route:
        with route.watch(job.button, job.cancelled.set):
            show(job, route)
            wait_blocking(job.future, job.tick, lambda: interrupt.came)
        if not interrupt.came:
            end(job)

async def something():
    pass
"""

WAYS = {
    "awaited": "await awaited()",
    "blocked": "blocked()",
    "timed": "%%time\nblocked()",
    "blocked in an async cell": "await something()\nblocked()",
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Code of a cell that runs until it is cancelled."""
    return WAYS[request.param]


@pytest.fixture
def client(client: Client) -> Client:
    """Give the shared kernel the job to wait for."""
    if "Job" not in client.run("print(*globals())").stdout.split():
        assert client.run(SETUP).status == "ok"
    return client


def test_click_cancels_and_the_queued_cells_run_in_order(
    client: Client, way: str, subshell_id: str | None
) -> None:
    running = client.start(way)
    button = client.wait_for_button(running)
    queued = [client.start(f"print({number}, job.future.done())") for number in range(2)]
    client.click(button, subshell_id)
    client.finish(running)
    assert (running.status, running.stdout.split("\n")[0]) == ("ok", "cancelled")
    for number, cell in enumerate(queued):
        assert client.finish(cell).stdout == f"{number} True\n"
    assert "".join(cell.stderr for cell in (running, *queued)) == ""


def test_interrupt_aborts_the_queue_and_the_next_cell_can_be_cancelled(
    client: Client, way: str
) -> None:
    running = client.start(way)
    client.wait_for_button(running)
    queued = client.start("print('must not run')")
    client.interrupt()
    client.finish(running)
    assert running.status == "error"
    assert running.error == "KeyboardInterrupt"
    client.finish(queued)
    assert (queued.status, queued.stdout) == ("aborted", "")

    client.run("job.cancelled.set(); job.button.close()")
    again = client.start(way)
    client.click(client.wait_for_button(again))
    assert client.finish(again).stdout.startswith("cancelled\n")


def test_clicks_on_other_buttons_are_passed_on(client: Client) -> None:
    shown = client.run("other = widgets.Button(description='Other'); display(other); clicks = []")
    client.run("other.on_click(lambda _: clicks.append(1))")
    running = client.start("blocked()")
    cancel = client.wait_for_button(running)
    client.click(client.wait_for_button(shown, "Other"))
    client.click(cancel)
    assert client.finish(running).stdout == "cancelled\n"
    # Another button's click has waited for its turn, as without us.
    assert client.value("len(clicks)") == "1"


def test_uninstall_leaves_the_stream_as_it_was(client: Client) -> None:
    client.run("uninstall()")
    callback = "get_ipython().kernel.shell_stream._recv_callback"
    original = client.value(callback)
    with_route = f"with ClickRoute(awaited=True): pass\nprint({callback})"
    client.run(with_route)
    assert "tapped" in client.value(callback)
    client.run("uninstall()")
    assert client.value(callback) == original
