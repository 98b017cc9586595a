"""Deadlines: a timeout ends a request in any phase, keeps its text and names the phase."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import VisionResult
from mlx_magic.engine.running_tasks import Deadlines
from mlx_magic.engine.task import Task
from mlx_magic.models.hub import download as hub_download
from mlx_magic.session import Session
from mlx_magic.testing import ManualClock, RecordingSink, ScriptedBackend, scripted_session
from tests import checkpoints

TIMEOUT = 10.0


@pytest.fixture
def script() -> ScriptedBackend:
    return ScriptedBackend("a b c")


@pytest.fixture
def session(script: ScriptedBackend, clock: ManualClock) -> Iterator[Session]:
    """A session with a manual clock and an engine that is stepped manually."""
    session = scripted_session(backend=script, threaded=False, clock=clock)
    yield session
    session.close()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(checkpoints.good(tmp_path / "seer"))


def question(model: str, timeout: float | None = TIMEOUT, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        prompt="What?", model=model, timeout=timeout, sampling=Sampling(**sampling)
    )


def step_until(session: Session, work: Task[Any], phase: str) -> None:
    while work.progress.phase != phase:
        session.engine.step()


def ended(result: VisionResult) -> tuple[str, str | None, float | None]:
    return result.finish_reason, result.stopped_in, result.stopping


@pytest.mark.parametrize("phase", ["loading", "vision", "prefill", "decode"])
def test_timeout_ends_a_request_in_every_phase(
    session: Session, script: ScriptedBackend, clock: ManualClock, folder: str, phase: str
) -> None:
    script.hold = phase  # type: ignore[assignment]
    sink = RecordingSink()
    generation = session.start(
        question(folder, max_tokens=10**6), images=[("i", Image.new("L", (9, 9)))], sink=sink
    )
    step_until(session, generation, phase)
    clock.advance(TIMEOUT - 0.5)
    for _ in range(20):
        session.engine.step()
    assert not generation.done
    clock.advance(0.75)
    step_until(session, generation, "done")

    result = generation.future.result(0)
    assert ended(result) == ("timeout", phase, 0.25)
    assert result.text == sink.text
    assert bool(result.text) == (phase == "decode")
    # The model still works.
    script.hold = None
    again = session.start(question(folder))
    step_until(session, again, "done")
    assert again.future.result(0).text == "a b c"


def test_timeout_ends_a_queued_request(session: Session, clock: ManualClock, folder: str) -> None:
    generation = session.start(question(folder))
    clock.advance(TIMEOUT - 1)
    session.pool.running.deadlines.cancel_overdue()
    assert not generation.done
    clock.advance(1.5)
    session.pool.running.deadlines.cancel_overdue()
    assert ended(generation.future.result(0)) == ("timeout", "queued", 0.5)


def test_timeout_ends_a_download(
    session: Session, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo_id: str, *, cancel: CancelToken, **_: Any) -> Path:
        while True:
            cancel.checkpoint()

    monkeypatch.setattr(hub_download, "download", download)
    generation = session.start(question("some/model"))
    while generation.progress.phase != "downloading":
        assert not generation.done
    clock.advance(TIMEOUT)
    assert generation.future.result(10).finish_reason == "timeout"
    assert generation.future.result(0).stopped_in == "downloading"


def test_timeout_ends_only_its_own_request(
    session: Session, script: ScriptedBackend, clock: ManualClock, folder: str
) -> None:
    script.hold = "prefill"
    asked = [session.start(question(folder, timeout)) for timeout in (1.0, None, 100.0)]
    for generation in asked:
        step_until(session, generation, "prefill")
    clock.advance(2)
    for _ in range(9):
        session.engine.step()
    assert [generation.done for generation in asked] == [True, False, False]
    script.release()
    for generation in asked:
        step_until(session, generation, "done")
    reasons = [generation.future.result(0).finish_reason for generation in asked]
    assert reasons == ["timeout", "stop", "stop"]


def test_cancelled_result_has_its_phase_and_delay(
    session: Session, script: ScriptedBackend, clock: ManualClock, folder: str
) -> None:
    script.hold = "prefill"
    generation = session.start(question(folder))
    step_until(session, generation, "prefill")
    generation.cancel()
    clock.advance(0.125)
    step_until(session, generation, "done")
    assert ended(generation.future.result(0)) == ("cancelled", "prefill", 0.125)


def test_answer_before_the_deadline_has_no_stop_details(
    session: Session, clock: ManualClock, folder: str
) -> None:
    generation = session.start(question(folder))
    step_until(session, generation, "done")
    clock.advance(1000)
    session.pool.running.deadlines.cancel_overdue()
    assert ended(generation.future.result(0)) == ("stop", None, None)


def test_deadline_is_noticed_with_a_real_clock(script: ScriptedBackend, folder: str) -> None:
    stuck = scripted_session(backend=script, threaded=False)
    asked = [stuck.start(question(folder, timeout)) for timeout in (1000.0, 0.05, 0.1)]
    assert [g.future.result(10).finish_reason for g in asked[1:]] == ["timeout"] * 2
    assert not asked[0].done
    thread = stuck.pool.running.deadlines._thread
    assert thread is not None
    stuck.close()
    thread.join(10)
    assert not thread.is_alive()

    script.hold = "decode"
    running = scripted_session(backend=script)
    result = running.start(question(folder, 0.2, max_tokens=10**6)).future.result(10)
    assert (result.finish_reason, result.stopped_in) == ("timeout", "decode")
    assert result.text.startswith("a b c")
    assert result.stopping is not None
    assert result.stopping < 5
    running.close()


def test_deadline_thread_starts_with_the_first_deadline(clock: ManualClock) -> None:
    deadlines = Deadlines(clock)
    deadlines.add(Task(clock))
    assert deadlines._thread is None
    deadlines.close()
