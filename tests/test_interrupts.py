"""Deferred interrupts: recorded, and raised at the end of the block."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from mlx_magic.engine.task import Task, outcome
from mlx_magic.interrupts import MOST, Interrupt, deferred


class Job(Task[str]):
    def __init__(self) -> None:
        super().__init__(lambda: 0.0)

    def _cancelled_outcome(self) -> str:
        return "cancelled"


@pytest.fixture(autouse=True)
def python_handles_it() -> Any:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupted(stretch: Callable[[Interrupt], None]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_deferred(stretch)


def run_deferred(stretch: Callable[[Interrupt], None]) -> None:
    with deferred() as interrupt:
        stretch(interrupt)


def test_interrupt_is_raised_at_the_end_of_the_deferred_block() -> None:
    done = []

    def stretch(interrupt: Interrupt) -> None:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.came
        assert not interrupt.repeated
        done.append(1)

    interrupted(stretch)
    assert done


def test_error_after_a_deferred_interrupt_becomes_keyboard_interrupt() -> None:
    def fails(interrupt: Interrupt) -> None:
        raise ValueError("mine")

    def interrupted_and_fails(interrupt: Interrupt) -> None:
        signal.raise_signal(signal.SIGINT)
        raise ValueError("mine")

    interrupted(interrupted_and_fails)
    with pytest.raises(ValueError, match="mine"):
        run_deferred(fails)


def test_repeated_interrupts_are_raised_at_once() -> None:
    done = []

    def stretch(interrupt: Interrupt) -> None:
        for _ in range(MOST - 1):
            signal.raise_signal(signal.SIGINT)
        assert interrupt.repeated
        done.append(1)
        signal.raise_signal(signal.SIGINT)
        done.append(2)

    interrupted(stretch)
    assert done == [1]


def test_other_threads_see_no_interrupt() -> None:
    found: list[bool] = []

    def work() -> None:
        with deferred() as interrupt:
            found.append(interrupt.came)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_ignored_interrupts_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert not interrupt.came
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("line", range(30))
def test_interrupt_at_any_line_cancels_the_task(line: int) -> None:
    began: list[Job] = []
    seen = 0

    def begin() -> Job:
        began.append(Job())
        return began[0]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if not frame.f_globals.get("__name__", "").startswith(("mlx_magic", __name__)):
            return None
        if event == "line":
            seen += 1
            if seen == line + 1:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            outcome(begin)
    finally:
        sys.settrace(before)
    assert seen > line
    assert all(job.token.requested for job in began)
