"""The engine: one thread, slices, order, errors, closing."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from mlx_magic.errors import EngineError
from mlx_magic.inference.engine import Engine


def steps(log: list[str], name: str, count: int) -> Generator[None, None, None]:
    for index in range(count):
        log.append(f"{name}{index}")
        yield


def no_error(error: BaseException) -> None:
    raise AssertionError("nothing failed") from error


def test_it_does_one_slice_a_step_and_one_piece_after_the_other() -> None:
    engine, log = Engine(threaded=False), list[str]()
    engine.submit(steps(log, "a", 2), no_error)
    engine.submit(steps(log, "b", 1), no_error)

    assert engine.step()
    assert log == ["a0"]
    assert engine.waiting == 2
    while engine.step():
        pass
    assert log == ["a0", "a1", "b0"]
    assert engine.waiting == 0


def test_an_error_ends_its_own_piece_alone() -> None:
    engine, log, errors = Engine(threaded=False), list[str](), list[BaseException]()

    def failing() -> Generator[None, None, None]:
        yield
        raise ValueError("no")

    engine.submit(failing(), errors.append)
    engine.submit(steps(log, "b", 1), no_error)
    while engine.step():
        pass

    assert [str(e) for e in errors] == ["no"]
    assert log == ["b0"]


def test_everything_runs_on_one_thread_that_is_not_the_callers() -> None:
    engine = Engine()
    names = [engine.call(lambda: threading.current_thread().name).result(10) for _ in range(3)]
    engine.close()

    assert set(names) == {"mlx-magic"}


def test_call_passes_on_the_error() -> None:
    engine = Engine(threaded=False)

    def fail() -> None:
        raise KeyError("x")

    future = engine.call(fail)
    engine.step()
    with pytest.raises(KeyError):
        future.result(0)


def test_closing_drops_what_is_queued_and_says_so() -> None:
    engine = Engine()
    entered, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        go_on.wait(10)

    running = engine.call(slow)
    queued = engine.call(lambda: None)
    assert entered.wait(10)
    closing = threading.Thread(target=engine.close)
    closing.start()
    go_on.set()
    closing.join(10)

    running.result(10)
    with pytest.raises(EngineError, match="shutting down"):
        queued.result(10)
    with pytest.raises(EngineError, match="closed"):
        engine.call(lambda: None)


def test_closing_an_engine_that_never_ran_is_nothing() -> None:
    Engine().close()
