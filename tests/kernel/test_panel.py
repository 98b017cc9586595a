"""The panel by protocol alone: in real kernels, by clients with subshells and without."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.jsonutil import json_default

from tests import checkpoints

from .conftest import start_client
from .kernel_client import Cell, Client, Message
from .panel_page import Page

pytestmark = pytest.mark.kernel

ANSWER = "Two red squares."

SETUP = """
%load_ext mlx_magic
import threading
import mlx_magic
from mlx_magic import testing
from mlx_magic import default_session
from mlx_magic.models.catalog.alias_file import AliasTarget

def prepare(models, **how):
    script = testing.use_scripted(**how)
    for name, folder in models.items():
        default_session.current().pool.give_alias(name, AliasTarget(folder))
    default_session.current().default_model = next(iter(models))
    return script

def settle():
    'Wait until the inference thread is idle and all of our other threads are gone.'
    default_session.current().engine.call(lambda: None).result(10)
    for thread in threading.enumerate():
        # The guard of the inference thread lives as long as that does.
        if thread.name.startswith("mlx-magic-") and thread.name != "mlx-magic-guard":
            thread.join(10)
            assert not thread.is_alive(), thread.name

class Gated:
    'Pieces of an answer; at each None it waits until the gate is opened once more.'
    def __init__(self, pieces):
        self.pieces, self.gate = pieces, threading.Semaphore(0)
    def __iter__(self):
        for piece in self.pieces:
            if piece is None:
                assert self.gate.acquire(timeout=60)
            else:
                yield piece
"""

QUESTION = "%%vision -m smol -o answer --max-tokens 1000000\nWhat is this?"
PHASES = {"loading": "loading", "prefill": "reading", "decode": "writing"}

OpenPage = Callable[..., Page]

# One ipykernel for each way of handling widget messages, for the slower tests.
each_way = pytest.mark.parametrize("version", ["6.29.5", "7.3.0", "7.4.0"], indirect=True)
oldest_and_newest = pytest.mark.parametrize("version", ["6.29.5", "7.4.0"], indirect=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints that inspect well, by alias; the first is the default."""
    folder = tmp_path_factory.mktemp("models")
    return {name: str(checkpoints.good(folder / name)) for name in ("smol", "other")}


@pytest.fixture
def client(client: Client) -> Client:
    """Give the shared kernel the magics, and what these tests need."""
    if "settle" not in client.run("print(*globals())").stdout.split():
        assert client.run(SETUP).status == "ok"
    return client


@pytest.fixture
def prepare(client: Client, models: dict[str, str]) -> Callable[..., None]:
    """Say what the models do, before a panel is opened: arguments of `use_scripted`."""

    def prepare(pieces: str = ANSWER, hold: str | None = None) -> None:
        run(client, f"script = prepare({models!r}, pieces={pieces!r}, hold={hold!r})")

    return prepare


@pytest.fixture
def open_page(client: Client) -> Iterator[OpenPage]:
    """Open panels, and close them in the end."""
    run(client, "panels = []")

    def open_page(subshell_id: str | None = None) -> Page:
        cell = run(client, "panels.append(mlx_magic.panel())\npanels[-1]")
        page = Page(client, cell, subshell_id)
        # An answer that is held must not come to its end by itself.
        client.set_state(page.max_tokens, subshell_id, value=1_000_000)
        return page

    yield open_page
    if client.in_flight():
        client.interrupt()
        for cell in client.in_flight():
            client.finish(cell)
    run(client, "script.release()\nfor panel in panels: panel.close()")
    run(client, "%config VisionMagics.model = None")


class Blocker:
    """Holds the kernel's main thread in a cell, until `release` is called."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.fifo = folder / "gate"
        os.mkfifo(self.fifo)
        self.cell: Cell

    def block(self) -> None:
        # Opening the one end waits, in the system and without Python's lock, for the other.
        self.cell = self.client.start(f"print('blocked')\nopen({str(self.fifo)!r}).close()")
        self.client.wait_for(lambda: "blocked" in self.cell.stdout, "the cell that blocks")

    def release(self) -> None:
        self.fifo.open("w").close()
        self.client.finish(self.cell)
        assert self.cell.status == "ok", self.cell.summary()


@pytest.fixture
def blocker(client: Client, tmp_path: Path) -> Blocker:
    return Blocker(client, tmp_path)


def run(client: Client, code: str) -> Cell:
    cell = client.run(code)
    assert (cell.status, cell.stderr) == ("ok", ""), cell.summary()
    return cell


def reaches_an_awaiting_cell(version: str, subshell_id: str | None) -> bool:
    """Whether this ipykernel handles widget messages while a cell awaits."""
    return subshell_id is not None or version == "7.4.0"


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    """Types of messages, equal neighbors as one."""
    found: list[str] = []
    for message in messages:
        if [message["type"]] != found[-1:]:
            found.append(message["type"])
    return found


def settled(client: Client) -> None:
    """Wait until nothing of ours goes on in the kernel."""
    run(client, "settle()")


# asking and cancelling


def test_answer_arrives_as_messages(
    client: Client,
    subshell_id: str | None,
    prepare: Callable[..., None],
    open_page: OpenPage,
) -> None:
    prepare(hold="decode")
    page = open_page(subshell_id)
    assert [page.row(name) != "" for name in ("smol", "other")] == [True, True]
    page.ask("What is this?")
    page.wait_for_text(ANSWER.split()[0])
    assert page.answer()["state"] == "running"
    run(client, "script.release()")
    answer = page.wait_for_end()
    assert answer["text"].startswith(ANSWER)
    assert ANSWER in page.text()
    assert answer["cell"].startswith("%%vision -m smol ")
    came = kinds(page.messages())
    assert came[0] == "turn"
    assert came[-1] == "answer"
    assert {"s", "d"} <= set(came) <= {"turn", "s", "d", "b", "answer"}
    assert page.refreshed == 0
    assert client.widgets[page.prompt]["value"] == ""


@each_way
@pytest.mark.parametrize("phase", PHASES)
def test_cancel_in_each_phase(
    client: Client,
    phase: str,
    prepare: Callable[..., None],
    open_page: OpenPage,
) -> None:
    prepare(hold=phase)
    page = open_page()
    page.ask("What is this?")
    page.wait_for_status(PHASES[phase])
    if phase == "decode":
        page.wait_for_text(ANSWER.split()[0])
    shown = page.text()
    page.press("Cancel")
    answer = page.wait_for_end("cancelled")
    assert answer["text"].startswith(shown)
    assert bool(answer["text"]) == (phase == "decode")
    assert answer["footer"].startswith("cancelled")
    run(client, "script.release()")
    page.ask("And now?")
    page.wait_for_turns(2)
    assert page.wait_for_end()["text"] == ANSWER
    assert [turn["prompt"] for turn in page.turns] == ["What is this?", "And now?"]


@each_way
def test_load_can_be_cancelled_and_restarted(
    client: Client, prepare: Callable[..., None], open_page: OpenPage
) -> None:
    prepare(hold="loading")
    page = open_page()
    page.press("Load", "smol")
    page.wait_for_row("smol", ">loading<", "Cancel load")
    page.press("Cancel load", "smol")
    page.wait_for_row("smol", "on disk")
    run(client, "script.release()")
    page.press("Load", "smol")
    page.wait_for_row("smol", ">loaded<", "Unload")
    page.press("Unload", "smol")
    page.wait_for_row("smol", "on disk")


@each_way
def test_interrupt_without_a_running_cell_does_not_stop_the_answer(
    client: Client, prepare: Callable[..., None], open_page: OpenPage
) -> None:
    prepare(hold="decode")
    page = open_page()
    page.ask("What is this?")
    page.wait_for_text(ANSWER)
    client.interrupt()
    assert run(client, "print(1 + 1)").stdout == "2\n"
    length = len(page.text())
    page.wait_for(lambda: len(page.text()) > length, "more of the answer")
    page.press("Cancel")
    page.wait_for_end("cancelled")


# beside cells


def test_panel_answers_while_a_cell_awaits(
    client: Client,
    version: str,
    subshell_id: str | None,
    prepare: Callable[..., None],
    open_page: OpenPage,
) -> None:
    prepare(hold="decode")
    page = open_page(subshell_id)
    page.write("What is that?")
    client.wait_for(lambda: not client.widgets[page.button("Run")]["disabled"], "Run")
    asking = client.start(QUESTION)
    client.wait_for_words(asking, ANSWER.split()[0])
    page.press("Run")
    if reaches_an_awaiting_cell(version, subshell_id):
        page.wait_for_turns(1)
        page.press("Cancel")
        page.wait_for_end("cancelled")
        assert asking.reply is None
    client.click(client.wait_for_button(asking), subshell_id)
    client.finish(asking)
    assert client.value("answer.finish_reason") == "cancelled"
    page.wait_for_turns(1)
    if not reaches_an_awaiting_cell(version, subshell_id):
        # Not lost: it ran after the cell and was not cancelled.
        page.wait_for_text(ANSWER)
        assert page.answer()["state"] == "running"


@each_way
def test_cancel_of_the_panel_and_of_a_cell_are_independent(
    client: Client,
    subshell_id: str | None,
    prepare: Callable[..., None],
    open_page: OpenPage,
) -> None:
    prepare(hold="decode")
    page = open_page(subshell_id)
    page.ask("What is that?")
    page.wait_for_text(ANSWER)
    asking = client.start(QUESTION)
    # It does not wait for the panel's answer: both are generated alternately.
    client.wait_for_words(asking, ANSWER.split()[0])
    client.click(client.wait_for_button(asking), subshell_id)
    client.finish(asking)
    assert client.value("answer.finish_reason, answer.text").startswith("cancelled Two")
    length = len(page.text())
    page.wait_for(lambda: len(page.text()) > length, "more of the answer")
    # The reverse: the click arrives while the cell awaits, on any ipykernel.
    asking = client.start(QUESTION)
    client.wait_for_button(asking)
    page.press("Cancel")
    page.wait_for_end("cancelled")
    client.wait_for_words(asking, ANSWER.split()[0])
    client.click(client.wait_for_button(asking), subshell_id)
    client.finish(asking)
    assert client.value("answer.finish_reason") == "cancelled"


def test_cancel_works_while_a_cell_blocks_the_kernel(
    client: Client,
    version: str,
    subshell_id: str | None,
    prepare: Callable[..., None],
    open_page: OpenPage,
    blocker: Blocker,
) -> None:
    prepare(hold="decode")
    page = open_page(subshell_id)
    page.ask("What is this?")
    page.wait_for_text(ANSWER)
    blocker.block()
    page.press("Cancel")
    if not version.startswith("6."):
        page.wait_for_end("cancelled")
        assert blocker.cell.reply is None
    # ipykernel 6 reads no message meanwhile: the click counts as soon as the cell is over.
    blocker.release()
    page.wait_for_end("cancelled")


@each_way
def test_run_clicked_while_a_cell_blocks_is_not_lost(
    client: Client,
    subshell_id: str | None,
    prepare: Callable[..., None],
    open_page: OpenPage,
    blocker: Blocker,
) -> None:
    prepare()
    page = open_page(subshell_id)
    page.write("What is this?")
    client.wait_for(lambda: not client.widgets[page.button("Run")]["disabled"], "Run")
    blocker.block()
    page.press("Run")
    blocker.release()
    page.wait_for_turns(1)
    assert page.wait_for_end()["text"] == ANSWER
    settled(client)
    assert len(page.turns) == 1


@each_way
def test_watched_click_is_handled_once(
    client: Client, version: str, subshell_id: str | None, blocker: Blocker
) -> None:
    shown = run(
        client,
        "import ipywidgets as widgets\n"
        "from mlx_magic.notebook.kernel import click_routing as clicks\n"
        "counted = []\n"
        "watched = widgets.Button(description='Watched')\n"
        "end = clicks.watch_always(watched, lambda: counted.append(threading.get_ident()))\n"
        "watched",
    )
    button = client.wait_for_button(shown, "Watched")
    blocker.block()
    client.click(button, subshell_id)
    blocker.release()
    client.click(button, subshell_id)
    client.round_trip()
    # A subshell handles its messages beside the main shell: ask there, too.
    client.request_states(subshell_id)
    assert client.value("len(counted)") == "2"
    run(client, "end(); watched.close()")


# several panels, and what cells do


@oldest_and_newest
def test_two_panels_share_models_and_answer_independently(
    client: Client, prepare: Callable[..., None], open_page: OpenPage
) -> None:
    prepare(hold="decode")
    first, second = open_page(), open_page()
    first.press("Load", "other")
    for page in (first, second):
        page.wait_for_row("other", ">loaded<", "Unload")
        page.wait_for_choice("other · vision · loaded")
    first.ask("What is this?")
    first.wait_for_text(ANSWER)
    second.wait_for_row("smol", "loaded, in use")
    assert second.turns == []
    second.ask("And this?")
    second.wait_for_turns(1)
    second.press("Cancel")
    second.wait_for_end("cancelled")
    length = len(first.text())
    first.wait_for(lambda: len(first.text()) > length, "more of the answer")
    first.press("Cancel")
    first.wait_for_end("cancelled")
    second.press("Unload", "smol")
    first.wait_for_row("smol", "on disk", "Load")


@each_way
def test_panel_shows_models_loaded_by_cells(
    client: Client, prepare: Callable[..., None], open_page: OpenPage
) -> None:
    prepare()
    page = open_page()
    page.wait_for_row("smol", "on disk", "default")
    assert "default" not in page.row("other")
    run(client, "%vision load other")
    page.wait_for_row("other", ">loaded<", "Unload")
    page.wait_for_choice("other · vision · loaded")
    run(client, "%vision use other")
    page.wait_for_row("other", "default")
    page.wait_for(lambda: "default" not in page.row("smol"), "one default")
    run(client, "%vision unload other")
    page.wait_for_row("other", "on disk", "Load")
    page.wait_for_choice("other · vision · on disk")


# page reload


@each_way
def test_page_reload_during_an_answer_keeps_it(
    client: Client,
    subshell_id: str | None,
    prepare: Callable[..., None],
    open_page: OpenPage,
) -> None:
    prepare()
    page = open_page(subshell_id)
    page.ask("What is this?")
    page.wait_for_end()
    pieces = ["First ", "paragraph.\n\n", "Then a ", None, "tail, ", None, "and more.\n\nEnd."]
    run(client, f"script.pieces = Gated({pieces!r})")
    page.ask("And now?")
    page.wait_for_turns(2)
    page.wait_for(lambda: page.answer()["tail"] == "Then a ", "the first part")
    before = page.turns
    page.reload()
    assert page.turns == before
    assert page.answer()["state"] == "running"
    run(client, "script.pieces.gate.release()")
    page.wait_for(lambda: page.answer()["tail"] == "Then a tail, ", "what comes after")
    assert page.answer()["blocks"] == ["<p>First paragraph.</p>\n"]
    assert page.refreshed == 0
    page.reload()
    run(client, "script.pieces.gate.release()")
    answer = page.wait_for_end()
    assert answer["text"] == "".join(piece for piece in pieces if piece)
    assert page.refreshed == 0
    settled(client)
    before = page.turns
    page.reload()
    assert page.turns == before
    assert [turn["number"] for turn in before] == [1, 2]


@oldest_and_newest
def test_page_requests_state_after_a_missed_message(
    client: Client, prepare: Callable[..., None], open_page: OpenPage
) -> None:
    prepare(hold="decode")
    page = open_page()
    page.ask("What is this?")
    page.wait_for_text(ANSWER)
    # The page loses a piece of what it had.
    page.answer()["tail"] = page.answer()["tail"][:-1]
    page.wait_for(lambda: bool(page.turns) and page.refreshed > 0, "what does not fit")
    page.wait_for(lambda: len(page.text()) > 3 * len(ANSWER), "more of the answer")
    run(client, "script.release()")
    assert page.wait_for_end()["text"].startswith(ANSWER)


# traffic


@each_way
def test_idle_panel_sends_nothing(
    client: Client, prepare: Callable[..., None], open_page: OpenPage
) -> None:
    prepare(hold="decode")
    page = open_page()
    status = page.status

    def assert_silent() -> None:
        settled(client)
        assert client.round_trip() == []
        assert client.round_trip() == []
        threads = run(client, "print([thread.name for thread in threading.enumerate()])").stdout
        assert "mlx-magic-panel" not in threads

    assert_silent()
    asking = client.start(QUESTION)
    client.wait_for_words(asking, ANSWER.split()[0])
    # A cell's answer wakes the panel, which shows it.
    page.wait_for(lambda: "smol: writing" in client.widgets[status]["value"], "the panel's line")
    client.click(client.wait_for_button(asking))
    client.finish(asking)
    assert_silent()
    assert "idle" in client.widgets[status]["value"]
    page.ask("What is this?")
    page.wait_for_text(ANSWER)
    page.press("Cancel")
    page.wait_for_end("cancelled")
    assert_silent()


@oldest_and_newest
def test_bytes_on_the_wire_are_bounded(
    client: Client, prepare: Callable[..., None], open_page: OpenPage
) -> None:
    prepare()
    run(
        client,
        "import itertools, time\n"
        "class Paced:\n"
        "    def __iter__(self):\n"
        "        for count in range(1, 2001):\n"
        "            time.sleep(0.001)\n"
        "            yield f'word{count:04} ' if count % 80 else 'end.\\n\\n'\n"
        "script.pieces = Paced()",
    )
    page = open_page()
    settled(client)
    begin = len(client.iopub)
    page.write("Write a lot.")
    client.wait_for(lambda: not client.widgets[page.button("Run")]["disabled"], "Run")
    page.press("Run")
    page.wait_for_turns(1)
    assert len(page.wait_for_end(timeout=60)["text"].split()) == 2000
    settled(client)
    size = sum(wire_bytes(message) for message in client.iopub[begin:])
    times = [message["header"]["date"] for message in client.iopub[begin:] if is_update(message)]
    span = (times[-1] - times[0]).total_seconds()
    print(f"{size} bytes, {len(times)} updates in {span:.2f} s, {len(times) / span:.1f} a second")
    assert size <= 300_000
    # At most one in 50 ms, by what the throttle allows; a slow machine may send fewer.
    assert 15 <= len(times) <= 1 + span / 0.05


def wire_bytes(message: Message) -> int:
    parts = (message[part] for part in ("header", "parent_header", "metadata", "content"))
    return sum(len(json.dumps(part, default=json_default).encode()) for part in parts)


def is_update(message: Message) -> bool:
    content = message["content"].get("data", {}).get("content", {})
    return message["msg_type"] == "comm_msg" and content.get("type") in ("d", "b")


# the real thing

LOADING = 60.0
"""Seconds that the import of mlx-vlm and the load may take on a slow machine."""


@pytest.mark.model
def test_bundled_model_answers_in_the_panel(tmp_path: Path) -> None:
    client = start_client("7.4.0", tmp_path)
    try:
        run(client, "import mlx_magic; panel = mlx_magic.panel()")
        page = Page(client, run(client, "panel"))
        page.ask("What can you do?")
        page.wait_for_turns(1)
        answer = page.wait_for_end(timeout=LOADING)
        assert answer["text"]
        assert answer["text"] == client.value("panel.result.text")
        assert "tokens/s" in answer["footer"]
        page.wait_for_row("demo", ">loaded<")
    finally:
        client.close()
