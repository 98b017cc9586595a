"""Cancel and interrupt in real kernels: every phase, every way to run the magic."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import checkpoints

from .kernel_client import Cell, Client

pytestmark = pytest.mark.kernel

SETUP = """
%load_ext mlx_magic
from PIL import Image
from mlx_magic.testing import use_scripted
img = Image.new("RGB", (40, 20), "red")
"""
ANSWER = "Two red squares."

# How the view tells that a phase has been reached.
PHASES = {
    "loading": "loading",
    "vision": "looking at the picture",
    "prefill": "reading the prompt",
    "decode": ANSWER.split()[0],
}

# So long that it never ends by itself: while it is held, the script repeats the answer.
OPTIONS = "img -o answer --max-tokens 1000000"
QUESTION = f"%%vision {OPTIONS}\nWhat is this?"
NESTED = {
    "timed": f"%%time\n{QUESTION}",
    "captured": f"%%capture captured\n{QUESTION}",
    "from code": f"_ = get_ipython().run_cell_magic('vision', '{OPTIONS}', 'What is this?')",
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that inspects well; the scripted backend does not read its weights."""
    return checkpoints.good(tmp_path_factory.mktemp("model"))


@pytest.fixture
def client(client: Client, model: Path) -> Client:
    """Give the shared kernel the magics."""
    if "use_scripted" not in client.run("print(*globals())").stdout.split():
        assert client.run(SETUP).status == "ok"
    assert client.run(f"%config VisionMagics.model = {str(model)!r}").status == "ok"
    client.run("answer = None")
    return client


def hold(client: Client, phase: str) -> None:
    """Let the next question stay in a phase until it is cancelled."""
    cell = client.run(f"script = use_scripted({ANSWER!r}, hold={phase!r})")
    assert cell.status == "ok", cell.summary()


def assert_next_question_works(client: Client) -> None:
    client.run("script.release()")
    cell = client.run("%%vision img -o following\nAnd now?")
    assert (cell.status, cell.stderr) == ("ok", ""), cell.summary()
    assert client.value("following.text, following.finish_reason") == f"{ANSWER} stop"


def assert_cancelled(client: Client, *cells: Cell) -> None:
    for cell in cells:
        client.finish(cell)
        assert (cell.status, cell.stderr) == ("ok", ""), cell.summary()
    assert client.value("answer.finish_reason") == "cancelled"


@pytest.mark.parametrize("phase", PHASES)
def test_click_cancels_in_each_phase(client: Client, phase: str) -> None:
    hold(client, phase)
    asking = client.start(QUESTION)
    client.wait_for_words(asking, PHASES[phase])
    client.click(client.wait_for_button(asking))
    assert_cancelled(client, asking)
    partial = client.value("answer.text")
    assert partial.startswith(ANSWER) if phase == "decode" else partial == ""
    assert_next_question_works(client)


def test_queued_cell_waits_and_runs_after_cancel(client: Client, subshell_id: str | None) -> None:
    hold(client, "decode")
    asking = client.start(QUESTION)
    queued = client.start("print(answer.finish_reason)")
    client.wait_for_words(asking, PHASES["decode"])
    client.click(client.wait_for_button(asking), subshell_id)
    assert_cancelled(client, asking, queued)
    assert queued.stdout == "cancelled\n"
    order = [message["msg_id"] for message in (*asking.messages, *queued.messages)]
    assert len(order) == len(set(order))


@pytest.mark.parametrize("prefix", ["", "%%time\n"], ids=["top", "nested"])
def test_early_click_before_the_button_is_watched_counts(
    client: Client, prefix: str, subshell_id: str | None
) -> None:
    hold(client, "decode")
    asking = client.start(prefix + QUESTION)
    # As soon as there is a button, before it is displayed: a program can be that quick.
    client.click(client.wait_for_button(asking, seen=False), subshell_id)
    assert_cancelled(client, asking)
    assert_next_question_works(client)


def test_interrupt_keeps_the_partial_answer_and_stops_the_queue(client: Client) -> None:
    hold(client, "decode")
    asking = client.start(QUESTION)
    queued = client.start("print('must not run')")
    client.wait_for_words(asking, PHASES["decode"])
    client.interrupt()
    assert client.finish(asking).status == "error"
    client.finish(queued)
    assert (queued.status, queued.stdout) == ("aborted", "")
    assert client.value("answer.finish_reason") == "cancelled"
    assert client.value("answer.text").startswith(ANSWER)
    assert_next_question_works(client)


@pytest.mark.parametrize("code", NESTED.values(), ids=NESTED)
def test_nested_magic_answers(client: Client, code: str) -> None:
    client.run(f"script = use_scripted({ANSWER!r})")
    cell = client.run(code)
    assert (cell.status, cell.stderr) == ("ok", ""), cell.summary()
    assert client.value("answer.text, answer.finish_reason") == f"{ANSWER} stop"


@pytest.mark.parametrize("code", NESTED.values(), ids=NESTED)
def test_nested_magic_can_be_cancelled(client: Client, code: str, subshell_id: str | None) -> None:
    hold(client, "decode")
    asking = client.start(code)
    queued = client.start("print(answer.finish_reason)")
    client.wait_for_words(asking, PHASES["decode"])
    client.click(client.wait_for_button(asking, seen="capture" not in code), subshell_id)
    assert_cancelled(client, asking, queued)
    assert_next_question_works(client)


@pytest.mark.parametrize("way", NESTED)
def test_nested_magic_can_be_interrupted(client: Client, way: str) -> None:
    hold(client, "decode")
    asking = client.start(NESTED[way])
    queued = client.start("print('next')")
    client.wait_for_words(asking, PHASES["decode"])
    client.interrupt()
    client.finish(asking)
    client.finish(queued)
    # %%capture keeps every error of its cell for itself, an interrupt too: that is IPython's.
    expected = ("ok", "ok") if way == "captured" else ("error", "aborted")
    assert (asking.status, queued.status) == expected
    assert client.value("answer.finish_reason") == "cancelled"
    assert_next_question_works(client)


def test_captured_answer_is_shown_later(client: Client) -> None:
    client.run(f"script = use_scripted({ANSWER!r})")
    client.run(NESTED["captured"])
    shown = client.run("captured.show()")
    assert ANSWER in shown.text
    # What is kept must not need a kernel.
    assert not any("widget-view" in kind for data in shown.displayed[-1:] for kind in data)


@pytest.mark.parametrize("prefix", ["", "%%time\n"], ids=["top", "nested"])
def test_load_can_be_cancelled(client: Client, model: Path, prefix: str) -> None:
    hold(client, "loading")
    loading = client.start(f"{prefix}%vision load {model} --as held")
    client.wait_for_words(loading, PHASES["loading"])
    client.click(client.wait_for_button(loading))
    client.finish(loading)
    assert (loading.status, loading.stderr) == ("ok", "")
    assert "Cancelled" in loading.stdout
    assert_next_question_works(client)


@pytest.mark.parametrize("prefix", ["", "%time "], ids=["awaited", "nested"])
def test_waiting_unload_can_be_cancelled_interrupted_and_forced(
    client: Client, model: Path, prefix: str
) -> None:
    hold(client, "decode")
    client.run(
        "from mlx_magic import default_session\n"
        "from mlx_magic.engine.request import GenerationRequest, Sampling\n"
        "sampling = Sampling(max_tokens=10**9)\n"
        f"request = GenerationRequest('Hi', model={str(model)!r}, sampling=sampling)\n"
        "asked = default_session.current().start(request)\n"
        "while asked.progress.phase != 'decode': pass"
    )
    unloading = client.start(f"{prefix}%vision unload {model}")
    client.wait_for_words(unloading, "once its user is done")
    client.click(client.wait_for_button(unloading))
    client.finish(unloading)
    assert (unloading.status, unloading.stderr) == ("ok", ""), unloading.summary()
    assert f"Cancelled: {model} was not unloaded." in unloading.stdout

    unloading = client.start(f"{prefix}%vision unload --all")
    client.wait_for_words(unloading, "once its user is done")
    client.interrupt()
    client.finish(unloading)
    assert "KeyboardInterrupt" in unloading.error
    assert client.value("asked.done, len(default_session.current().pool)") == "False 1"

    forced = client.run(f"{prefix}%vision unload --all --force")
    assert "(cancelled 1 request)" in forced.stdout, forced.summary()
    assert client.value("asked.future.result().finish_reason") == "cancelled"
    assert client.value("default_session.current().running") == "[]"


def test_cancel_leaves_no_widgets_behind(client: Client) -> None:
    client.run("from ipywidgets.widgets.widget import _instances; before = set(_instances)")
    before = set(client.widgets)
    hold(client, "decode")
    asking = client.start(QUESTION)
    client.wait_for_words(asking, PHASES["decode"])
    client.click(client.wait_for_button(asking))
    assert_cancelled(client, asking)
    client.wait_for(lambda: set(client.widgets) <= before, "the end of the view")
    assert client.value("set(_instances) - before") == "set()"


def test_cell_keeps_one_static_result(client: Client) -> None:
    client.run(f"script = use_scripted({ANSWER!r})")
    cell = client.run(QUESTION)
    kept = [data for data in cell.kept if "text/markdown" in data or "text/html" in data]
    assert len(kept) == 1
    assert ANSWER in kept[0]["text/plain"]
    assert not any("widget-view" in kind for data in cell.kept for kind in data)
