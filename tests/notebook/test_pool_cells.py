"""The pool in cells: waiting and forced unloads, pins, budgets, and their messages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets import TraitError

from mlx_magic import default_session
from mlx_magic.demo import folder as demo_model
from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.task import Task
from mlx_magic.errors import MemoryBudgetError
from mlx_magic.model_pool.model_info import Load, ModelInfo
from mlx_magic.model_pool.unload import Unload
from mlx_magic.notebook.display import pool_messages
from mlx_magic.notebook.magics import VisionMagics
from mlx_magic.testing import ScriptedBackend
from tests import checkpoints

SIZE = 96


@pytest.fixture
def models(tmp_path: Path, shell: InteractiveShell, script: ScriptedBackend) -> list[str]:
    """Three models, loaded as A, B and C."""
    for name in "ABC":
        line(shell, f"load {checkpoints.good(tmp_path / name)} --as {name}")
    return list("ABC")


@pytest.fixture
def magics(shell: InteractiveShell, script: ScriptedBackend) -> VisionMagics:
    found = shell.magics_manager.registry["VisionMagics"]
    assert isinstance(found, VisionMagics)
    return found


def line(shell: InteractiveShell, text: str) -> Any:
    return shell.run_line_magic("vision", text)


def config(shell: InteractiveShell, text: str) -> None:
    shell.run_line_magic("config", f"VisionMagics.{text}")


def begin(script: ScriptedBackend, model: str) -> Generation:
    """Ask a question that goes on until it is cancelled or released."""
    script.hold = "decode"
    request = GenerationRequest(prompt="Hi", model=model, sampling=Sampling(max_tokens=10**6))
    generation = default_session.current().start(request)
    while generation.progress.phase != "decode":
        assert not generation.done
    return generation


def when_unloading(action: Callable[[Unload], object]) -> None:
    """Do something as soon as an unload waits."""

    def look() -> None:
        for work in default_session.current().running:
            if isinstance(work, Unload) and work not in seen:
                seen.append(work)
                action(work)

    seen: list[Task[Any]] = []
    default_session.current().watch(look)


def test_unload_waits_for_a_running_answer(
    shell: InteractiveShell,
    script: ScriptedBackend,
    models: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    generation = begin(script, "A")
    notes: list[str] = []

    def release(unload: Unload) -> None:
        notes.append(unload.progress.note)
        script.release()

    when_unloading(release)
    capsys.readouterr()
    line(shell, "unload A")
    assert capsys.readouterr().out == "Unloaded A: 96 B freed.\n"
    assert notes == ["unloading A once its user is done (--force cancels requests)"]
    assert generation.future.result(0).finish_reason == "stop"


def test_unload_force_cancels_requests_and_says_how_many(
    shell: InteractiveShell,
    script: ScriptedBackend,
    models: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [begin(script, "B"), begin(script, "B")]
    capsys.readouterr()
    line(shell, "unload --all --force")
    assert capsys.readouterr().out == (
        "Unloaded A: 96 B freed.\n"
        "Unloaded B: 96 B freed (cancelled 2 requests).\n"
        "Unloaded C: 96 B freed.\n"
    )
    assert [work.future.result(0).finish_reason for work in asked] == ["cancelled"] * 2


def cancel_b_when_c_waits(unload: Unload) -> None:
    for work in default_session.current().running if unload.name == "C" else ():
        if isinstance(work, Unload) and work.name == "B":
            work.cancel()


def test_cancel_ends_a_waiting_unload_and_the_following_ones(
    shell: InteractiveShell,
    script: ScriptedBackend,
    models: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [begin(script, "B"), begin(script, "C")]
    when_unloading(cancel_b_when_c_waits)
    capsys.readouterr()
    line(shell, "unload --all")
    assert capsys.readouterr().out == (
        "Unloaded A: 96 B freed.\nCancelled: B was not unloaded.\nCancelled: C was not unloaded.\n"
    )
    assert [model.name for model in default_session.current().pool] == ["B", "C"]
    for work in asked:
        work.cancel()


def test_withdrawn_unload_is_reported(
    shell: InteractiveShell,
    script: ScriptedBackend,
    models: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    generation = begin(script, "A")
    when_unloading(lambda _: default_session.current().pool.pin("A"))
    capsys.readouterr()
    line(shell, "unload A")
    assert capsys.readouterr().out == "A was not unloaded: a new request needs it.\n"
    generation.cancel()


def test_pinned_models_are_marked(
    shell: InteractiveShell,
    script: ScriptedBackend,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line(shell, f"load {checkpoints.good(tmp_path / 'A')} --as A --pin")
    assert capsys.readouterr().out == "Loaded A: vision, smolvlm, 96 B, pinned.\n"
    assert "loaded, pinned" in repr(line(shell, "list"))
    assert "A (pinned)" in repr(line(shell, "status"))
    line(shell, "unpin A")
    assert capsys.readouterr().out == "Unpinned A.\n"
    assert "pinned" not in repr(line(shell, "list"))
    line(shell, "pin A")
    assert capsys.readouterr().out == "Pinned A.\n"
    with pytest.raises(UsageError, match="B is not loaded; loaded: A"):
        line(shell, "pin B")


def test_lower_budget_is_applied_and_evicted_models_are_named(
    shell: InteractiveShell,
    script: ScriptedBackend,
    models: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    config(shell, f"memory_budget = {2 * SIZE}")
    assert capsys.readouterr().out == "Unloaded A (96 B): over the memory budget.\n"
    shell.run_cell_magic("vision", "-m A", "Hi")
    out = capsys.readouterr().out
    assert out.endswith("Unloaded B (96 B) to make room.\n")
    shell.run_cell_magic("vision", "-m B --no-show", "Hi")
    assert capsys.readouterr().out == ""
    line(shell, "load C")
    assert capsys.readouterr().out == (
        "Unloaded A (96 B) to make room.\nLoaded C: vision, smolvlm, 96 B.\n"
    )
    listed = repr(line(shell, "list"))
    assert listed.endswith("192 B of 192 B used.")
    assert "on disk, fits" in listed
    status = repr(line(shell, "status"))
    assert "192 B of 192 B used" in status
    assert "B (96 B) to make room for A; C (96 B) to make room for B; A (96 B) to" in status


def test_load_that_does_not_fit_names_the_models_that_cannot_leave(
    shell: InteractiveShell,
    script: ScriptedBackend,
    models: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in models:
        line(shell, f"pin {name}")
    capsys.readouterr()
    config(shell, "memory_budget = '200 B'")
    assert capsys.readouterr().out == (
        "Models take 88 B more than the budget of 200 B: A (96 B) is pinned, B (96 B) is "
        "pinned, C (96 B) is pinned. Unload it, or unpin it.\n"
    )
    with pytest.raises(UsageError, match="demo needs 96 B, but of the 200 B") as caught:
        line(shell, "load demo")
    assert not isinstance(caught.value, MemoryBudgetError)
    assert len(default_session.current().pool) == 3


def test_invalid_settings_are_refused_and_change_nothing(
    shell: InteractiveShell, magics: VisionMagics, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TraitError, match="is not a memory budget"):
        magics.memory_budget = "much"
    with pytest.raises(TraitError, match="is not a time"):
        magics.idle_ttl = -1
    config(shell, "memory_budget = 'much'")
    assert magics.memory_budget is None
    assert default_session.current().pool.budget is None
    config(shell, "idle_ttl = 300")
    config(shell, "memory_budget = 0.5")
    assert default_session.current().pool.idle_ttl == 300
    assert "(50% of the memory); idle models are unloaded after 300 s" in repr(
        line(shell, "status")
    )


def test_pool_is_displayed_as_a_table(
    shell: InteractiveShell, script: ScriptedBackend, models: list[str]
) -> None:
    pool = default_session.current().pool
    pool.pin("B")
    assert shell.display_formatter is not None
    formatted, _ = shell.display_formatter.format(pool)
    assert "<td" in formatted["text/html"]
    assert "loaded, pinned" in formatted["text/plain"]
    assert "288 B of" in formatted["text/plain"]


@pytest.mark.model
def test_four_real_models_on_a_budget_for_two_in_a_notebook(
    shell: InteractiveShell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = default_session._make()
    before = default_session.replace_current(real)
    try:
        for name in "abcd":
            line(shell, f"load {shutil.copytree(demo_model(), tmp_path / name)} --as {name}")
        size = real.pool["a"].nbytes
        config(shell, f"memory_budget = {int(2.5 * size)}")
        capsys.readouterr()
        said = []
        for name in "abcdcb":
            shell.run_cell_magic("vision", f"img -m {name} -o r --max-tokens 6", "What is it?")
            assert shell.user_ns["r"].finish_reason in ("stop", "length")
            lines = capsys.readouterr().out.splitlines()
            said.append([text for text in lines if text.startswith("Unloaded")])
        # c and d are there at first; at the end c is, since it was used last before b came.
        assert said == [
            ["Unloaded c (13 MB) to make room."],
            ["Unloaded d (13 MB) to make room."],
            ["Unloaded a (13 MB) to make room."],
            ["Unloaded b (13 MB) to make room."],
            [],
            ["Unloaded d (13 MB) to make room."],
        ]
        assert [model.name for model in real.pool] == ["c", "b"]
        assert "26 MB of 32 MB used." in repr(line(shell, "list"))
        line(shell, "unload --all")
        assert len(real.pool) == 0
    finally:
        default_session.replace_current(before)
        real.close()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "just now"), (59, "just now"), (61, "1 min ago"), (7_300, "2 h ago"), (9e5, "10 d ago")],
)
def test_idle_times_are_formatted_in_words(seconds: float, words: str) -> None:
    assert pool_messages.ago(seconds) == words


def test_model_states_are_formatted_in_words() -> None:
    def state(**more: Any) -> str:
        fields: dict[str, Any] = {"users": 0, "trusted": False, **more}
        info = ModelInfo("A", ("A",), "vision", "smolvlm", None, SIZE, path="A", **fields)
        return pool_messages.state(info)

    assert state() == "loaded"
    assert state(users=1) == "in use"
    assert state(users=2, pinned=True) == "in use by 2, pinned"
    assert state(idle=120.0, trusted=True) == "loaded, used 2 min ago, remote code allowed"


def test_cancelled_load_is_reported() -> None:
    load = Load("A", clock=lambda: 0.0)
    load.cancel()
    assert pool_messages.ended(load) == "Cancelled: A was not loaded."
