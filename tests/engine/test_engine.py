"""The engine: one thread, round-robin slices, errors, thread death, closing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from mlx_magic.engine import engine as engine_module
from mlx_magic.engine.engine import PRIORITY, WAIT, Engine, Steps
from mlx_magic.errors import EngineError


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def steps(log: list[str], name: str, count: int) -> Generator[None, None, None]:
    for index in range(count):
        log.append(f"{name}{index}")
        yield


def no_error(error: BaseException) -> None:
    raise AssertionError("nothing failed") from error


class Waiting:
    """A task that waits until it is told to end."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.rounds = 0
        self.closed_on = ""

    def steps(self) -> Steps:
        try:
            while not self.go_on.is_set():
                self.rounds += 1
                self.entered.set()
                yield WAIT
        finally:
            self.closed_on = threading.current_thread().name


def test_tasks_run_round_robin() -> None:
    engine, log = Engine(threaded=False), list[str]()
    engine.submit(steps(log, "a", 3), no_error)
    engine.submit(steps(log, "b", 1), no_error)

    assert engine.step()
    assert log == ["a0"]
    engine.submit(steps(log, "c", 2), no_error)
    while engine.step():
        pass
    assert log == ["a0", "b0", "a1", "c0", "a2", "c1"]
    assert not engine.step()


def test_calls_are_queued_unless_soon_is_set() -> None:
    engine, log = Engine(threaded=False), list[str]()
    engine.submit(steps(log, "a", 2), no_error)
    engine.call(lambda: log.append("in turn"))
    engine.step()
    engine.call(lambda: log.append("soon"), soon=True)
    while engine.step():
        pass
    assert log == ["a0", "soon", "in turn", "a1"]


def test_prioritized_task_gets_the_next_slice() -> None:
    engine, log = Engine(threaded=False), list[str]()
    pieces = {name: steps(log, name, 5) for name in "abcd"}
    for piece in pieces.values():
        engine.submit(piece, no_error)
    engine.step()
    engine.prioritize(pieces["d"])
    engine.prioritize(pieces["d"])
    for _ in range(6):
        engine.step()
    # The first task, whose slice may be running, keeps its turn; the order is unchanged.
    assert log == ["a0", "b0", "d0", "c0", "a1", "b1", "d1"]
    engine.prioritize(steps(log, "e", 1))
    assert engine.step()


def test_error_ends_only_its_own_task() -> None:
    engine, log, errors = Engine(threaded=False), list[str](), list[BaseException]()

    def failing() -> Generator[None, None, None]:
        yield
        raise ValueError("no")

    engine.submit(failing(), errors.append)
    engine.submit(steps(log, "b", 3), no_error)
    while engine.step():
        pass

    assert [str(e) for e in errors] == ["no"]
    assert log == ["b0", "b1", "b2"]


def test_all_calls_run_on_the_inference_thread(engine: Engine) -> None:
    names = [engine.call(lambda: threading.current_thread().name).result(10) for _ in range(3)]
    assert set(names) == {"mlx-magic"}


def test_call_raises_the_error_of_its_function() -> None:
    engine = Engine(threaded=False)

    def fail() -> None:
        raise KeyError("x")

    future = engine.call(fail)
    engine.step()
    with pytest.raises(KeyError):
        future.result(0)


def count_pauses(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    wait = engine._changed.wait

    def counting(timeout: float | None = None) -> bool:
        if timeout is not None and timeout != engine_module.IDLE:
            pauses.append(timeout)
        return wait(timeout)

    monkeypatch.setattr(engine._changed, "wait", counting)
    return pauses


def test_thread_sleeps_after_rounds_in_which_all_tasks_wait(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = count_pauses(engine, monkeypatch)

    def waiting(rounds: int) -> Steps:
        for _ in range(rounds):
            yield WAIT

    done = [threading.Event(), threading.Event()]
    for event in done:

        def work(event: threading.Event = event) -> Steps:
            yield from waiting(10)
            event.set()

        engine.submit(work(), no_error)
    assert all(event.wait(10) for event in done)
    assert len(pauses) >= 9
    assert set(pauses) == {engine_module.PAUSE}


def test_waiting_task_does_not_slow_a_running_task(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting()
    pauses = count_pauses(engine, monkeypatch)
    before_and_after: list[int] = []

    def busy() -> Generator[None, None, None]:
        before_and_after.append(len(pauses))
        for _ in range(100):
            yield
        before_and_after.append(len(pauses))
        waiting.go_on.set()

    engine.submit(waiting.steps(), no_error)
    assert waiting.entered.wait(10)
    engine.submit(busy(), no_error)
    assert waiting.go_on.wait(10)
    assert before_and_after[0] == before_and_after[1]
    assert waiting.rounds >= 100


def test_new_call_wakes_a_sleeping_thread(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PAUSE", 1000.0)
    waiting = Waiting()
    engine.submit(waiting.steps(), no_error)
    assert waiting.entered.wait(10)
    assert engine.call(lambda: 1).result(10) == 1
    assert engine.call(lambda: 2, soon=True).result(10) == 2
    waiting.go_on.set()
    engine.call(lambda: None).result(10)


class Bad(BaseException):
    """A BaseException that is not an Exception."""


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, Bad])
def test_thread_death_fails_all_tasks_and_the_next_call_starts_a_new_thread(
    engine: Engine, kind: type[BaseException]
) -> None:
    waiting, ended = Waiting(), threading.Event()
    errors: list[BaseException] = []
    lost: list[int] = []
    engine.when_lost(lambda: lost.append(len(errors)))

    def dying() -> Generator[None, None, None]:
        yield
        raise kind("the end")

    def told(error: BaseException) -> None:
        errors.append(error)
        if len(errors) == 2:
            ended.set()

    engine.submit(waiting.steps(), told)
    assert waiting.entered.wait(10)
    before = engine.call(threading.get_ident).result(10)
    engine.submit(dying(), told)
    assert ended.wait(1), "within a second"

    assert [type(error) for error in errors] == [EngineError] * 2
    assert len({id(error) for error in errors}) == 2
    assert f"died ({kind.__name__}: the end)" in str(errors[0])
    assert errors[0].__traceback__ is None
    assert lost == [0], "what it held is forgotten before anybody asks again"
    assert waiting.closed_on == "mlx-magic"
    thread = engine.call(threading.current_thread).result(10)
    assert thread.name == "mlx-magic"
    assert thread.is_alive()
    assert isinstance(before, int)


def test_thread_death_fails_a_pending_call() -> None:
    engine = Engine()
    entered, go_on = threading.Event(), threading.Event()

    def dying() -> Generator[None, None, None]:
        entered.set()
        go_on.wait(10)
        yield from ()
        raise SystemExit

    engine.submit(dying(), lambda error: None)
    assert entered.wait(10)
    waiting = [engine.call(lambda: None), engine.call(lambda: None, soon=True)]
    go_on.set()
    # A call with `soon` may still run.
    with pytest.raises(EngineError, match="died"):
        waiting[0].result(1)
    assert waiting[1].exception(1) is None or isinstance(waiting[1].exception(), EngineError)
    engine.close()


def test_thread_that_ended_silently_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, told = Engine(), threading.Event()
    lost: list[str] = []
    engine.when_lost(lambda: lost.append("forgotten"))
    waiting = Waiting()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run", lambda: None)
        engine.submit(waiting.steps(), lambda error: told.set())
        assert told.wait(1)
    assert lost == ["forgotten"]
    assert waiting.closed_on == "", "what belongs to a dead thread is left alone"
    assert engine.call(lambda: 5).result(10) == 5
    engine.close()


def test_call_in_a_forked_process_is_an_engine_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(EngineError, match="forked"):
        engine.call(lambda: None)


def test_close_fails_queued_tasks() -> None:
    engine = Engine()
    entered, go_on = threading.Event(), threading.Event()
    waiting = Waiting()
    errors: list[BaseException] = []

    def slow() -> None:
        entered.set()
        go_on.wait(10)

    engine.submit(waiting.steps(), errors.append)
    running = engine.call(slow)
    queued = engine.call(lambda: None)
    assert entered.wait(10)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine._closed:
        pass
    go_on.set()
    closing.join(10)

    running.result(10)
    with pytest.raises(EngineError, match="shutting down"):
        queued.result(10)
    assert [type(error) for error in errors] == [EngineError]
    assert waiting.closed_on == "mlx-magic"
    with pytest.raises(EngineError, match="closed"):
        engine.call(lambda: None)


def test_task_that_raises_on_close_does_not_keep_others_from_failing() -> None:
    engine = Engine(threaded=False)
    errors: list[BaseException] = []

    def stubborn() -> Generator[None, None, None]:
        try:
            yield
        finally:
            raise ValueError("not me")

    engine.submit(stubborn(), errors.append)
    engine.step()
    engine.submit(steps([], "b", 9), errors.append)
    engine.close()
    assert [type(error) for error in errors] == [EngineError] * 2


def test_thread_death_fails_all_tasks_even_if_one_raises_on_close() -> None:
    engine, told = Engine(), [threading.Event() for _ in range(3)]
    entered, all_in = threading.Event(), threading.Event()

    def stubborn() -> Steps:
        try:
            while True:
                entered.set()
                yield WAIT
        finally:
            raise SystemExit

    def dying() -> Generator[None, None, None]:
        yield
        entered.wait(10)
        # Later calls get a new thread and would wait there.
        all_in.wait(10)
        raise SystemExit

    engine.submit(stubborn(), lambda error: told[0].set())
    engine.submit(dying(), lambda error: told[1].set())
    engine.submit(Waiting().steps(), lambda error: told[2].set())
    all_in.set()
    assert all(event.wait(10) for event in told)
    engine.close()


def test_close_of_an_unused_engine_does_nothing() -> None:
    Engine().close()


LEAVING = """
import atexit, time
left = []
atexit.register(lambda: print(time.perf_counter() - left[0]))
from pathlib import Path
from mlx_magic.images.opening import open_images
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.testing import use_scripted
from mlx_magic.default_session import current
from PIL import Image
folder, hold = {folder!r}, {hold!r}
use_scripted("a b c", hold=hold)
asked = [
    current().start(
        GenerationRequest("What?", model=folder, timeout=1000.0),
        images=[("i", Image.new("L", (9, 9)))],
    )
    for _ in range(3)
]
while any(work.progress.phase != hold for work in asked):
    assert not any(work.done for work in asked)
left.append(time.perf_counter())
"""


@pytest.mark.parametrize("hold", ["loading", "vision", "prefill", "decode"])
def test_process_exits_cleanly_and_quickly_during_a_request(tmp_path: Any, hold: str) -> None:
    from tests import checkpoints

    folder = str(checkpoints.good(tmp_path / "seer"))
    source = LEAVING.format(folder=folder, hold=hold)
    run = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert float(run.stdout) < 2.0


def test_tidy_runs_once_after_work_and_not_while_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "IDLE", 0.01)
    tidied: list[str] = []
    done = threading.Event()

    def tidy() -> None:
        tidied.append(threading.current_thread().name)
        done.set()

    engine = Engine(tidy=tidy)
    try:
        for count in (1, 2):
            done.clear()
            assert engine.call(lambda: 5).result(10) == 5
            assert done.wait(10)
            assert tidied == ["mlx-magic"] * count
    finally:
        engine.close()


def test_tidy_runs_periodically_during_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    at: list[float] = []
    engine = Engine(tidy=lambda: at.append(now[0]), clock=lambda: now[0])

    def steps() -> Generator[None, None, None]:
        for _ in range(100):
            now[0] += 1.0
            yield

    ended = threading.Event()
    try:
        engine.submit(steps(), lambda error: None)
        engine.submit(_then(ended), lambda error: None)
        assert ended.wait(10)
        engine.call(lambda: None).result(10)
        assert at[:1] == [31.0]
        assert len(at) == 3
    finally:
        engine.close()


def _then(ended: threading.Event) -> Generator[None, None, None]:
    for _ in range(101):
        yield
    ended.set()


def test_urgent_job_runs_before_the_others_which_still_go_on() -> None:
    engine = Engine(threaded=False)
    ran: list[str] = []
    waits = True

    def job(name: str, count: int) -> Steps:
        for _ in range(count):
            ran.append(name)
            yield None

    def failed(error: BaseException) -> None:
        raise error

    for at in range(5):
        engine.submit(job(f"map {at}", 10), failed)
    engine.submit(job("cell", 40), failed, urgent=lambda: waits)
    for _ in range(2 * (PRIORITY + 1)):
        engine.step()
    # Without priority it would have had three of these slices.
    assert ran.count("cell") == 2 * PRIORITY
    assert [name for name in ran if name != "cell"] == ["map 0", "map 1"]
    waits = False
    del ran[:]
    for _ in range(6):
        engine.step()
    assert sorted(ran) == ["cell", "map 0", "map 1", "map 2", "map 3", "map 4"]
    while engine.step():
        pass


def test_jobs_come_from_another_thread_while_urgent_ones_are_looked_for() -> None:
    """A switch of threads after each bytecode: without a lock the engine's thread ends."""
    engine = Engine(threaded=False)
    failed: list[BaseException] = []
    ran = [0]

    def job() -> Steps:
        ran[0] += 1
        yield None

    def submit() -> None:
        for _ in range(3000):
            engine.submit(job(), failed.append, urgent=lambda: False)

    before = sys.getswitchinterval()
    other = threading.Thread(target=submit)
    sys.setswitchinterval(1e-6)
    try:
        other.start()
        while other.is_alive() or engine.step():
            engine.step()
    finally:
        sys.setswitchinterval(before)
        other.join()
    assert (ran, failed) == ([3000], [])
