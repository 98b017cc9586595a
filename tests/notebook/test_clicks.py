"""Waiting in a cell: awaited and blocking waits, interrupts, kernels without clicks."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace

import ipywidgets as widgets
import pytest

from mlx_magic.interrupts import deferred
from mlx_magic.notebook.kernel import click_routing
from mlx_magic.notebook.kernel.click_routing import ClickRoute, wait_async, wait_blocking

from .test_shell_tap import Bench


@pytest.fixture
def button() -> Iterator[widgets.Button]:
    button = widgets.Button(description="Cancel")
    yield button
    button.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()
    click_routing.uninstall()


def test_click_message_calls_the_callback(bench: Bench, button: widgets.Button) -> None:
    clicked = threading.Event()
    frames = bench.frames(comm_id=button.model_id)
    with ClickRoute(awaited=False, kernel=bench.kernel) as route:
        assert (route.works, route.reason) == (True, "")
        with route.watch(button, clicked.set):
            bench.receive(frames)
    assert clicked.is_set()


def test_click_handled_by_the_kernel_calls_the_callback(button: widgets.Button) -> None:
    clicked: list[int] = []
    with ClickRoute(awaited=True) as route, route.watch(button, lambda: clicked.append(1)):
        button.click()
    button.click()
    assert clicked == [1]


def test_watch_ends_with_the_cell(bench: Bench, button: widgets.Button) -> None:
    clicked: list[int] = []
    with ClickRoute(awaited=True, kernel=bench.kernel) as route:
        with route.watch(button, lambda: clicked.append(1)):
            pass
        bench.receive(bench.frames(comm_id=button.model_id))
    assert clicked == []


def test_uninstall_restores_the_stream(bench: Bench) -> None:
    with ClickRoute(awaited=True, kernel=bench.kernel):
        assert bench.stream._recv_callback is not bench.stream.original
    click_routing.uninstall()
    assert bench.stream._recv_callback is bench.stream.original
    click_routing.uninstall()


@pytest.mark.parametrize(
    ("version", "awaited", "works"),
    [
        ((7, 3, 0), True, False),
        ((7, 4, 0), True, True),
        ((7, 4, 0), False, False),
        ((8, 0, 0), True, True),
    ],
)
def test_unknown_kernel_reports_whether_clicks_arrive(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], awaited: bool, works: bool
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace(version_info=version))
    with ClickRoute(awaited=awaited, kernel=SimpleNamespace()) as route:
        assert route.works is works
        assert ("interrupt" in route.reason) is not works


def test_missing_kernel_gives_a_reason() -> None:
    with ClickRoute(awaited=False) as route:
        assert not route.works
        assert "no notebook kernel" in route.reason


async def test_future_ends_an_awaited_wait_at_once() -> None:
    future: Future[int] = Future()
    start = threading.Timer(0, future.set_result, [1])
    # An hour between two ticks: only the future can end this in time.
    await asyncio.wait_for(wait_async(future, start.start, interval=3600), timeout=10)
    assert future.done()


async def test_awaited_wait_accepts_a_condition() -> None:
    ticks: list[int] = []
    await wait_async(lambda: len(ticks) == 3, lambda: ticks.append(1), interval=0)
    assert len(ticks) == 3


async def test_finished_work_is_not_waited_for() -> None:
    future: Future[int] = Future()
    future.set_result(1)
    await wait_async(future, pytest.fail)
    wait_blocking(future, pytest.fail)


async def test_cancelled_cell_does_not_cancel_the_work() -> None:
    future: Future[int] = Future()
    ticked = asyncio.Event()
    waiting = asyncio.create_task(wait_async(future, ticked.set))
    await ticked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not future.cancelled()


def test_work_may_fail_after_its_loop_is_closed() -> None:
    future: Future[int] = Future()

    async def interrupted() -> None:
        waiting = asyncio.create_task(wait_async(future, lambda: None))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(interrupted())
    future.set_exception(RuntimeError("nobody asks for this"))
    assert future.done()


def test_blocking_wait_ends_with_the_work() -> None:
    future: Future[int] = Future()
    wait_blocking(future, threading.Timer(0, future.set_result, [1]).start, interval=3600)
    assert future.result() == 1


def test_blocking_wait_receives_clicks_itself(bench: Bench, button: widgets.Button) -> None:
    future: Future[int] = Future()
    frames = bench.frames(comm_id=button.model_id)
    bench.stream.on_flush = lambda: bench.receive(frames)
    route = ClickRoute(awaited=False, kernel=bench.kernel)
    with route, route.watch(button, lambda: future.set_result(1)):
        wait_blocking(future, lambda: None)
    assert future.result() == 1


def test_an_interrupt_ends_a_blocking_wait_and_is_raised_after_it() -> None:
    # As in an async cell of ipykernel, where SIGINT would only be noted.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    said: list[str] = []
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_cell(said)
        assert signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, before)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said


def interrupted_cell(said: list[str]) -> None:
    with deferred() as interrupt, ClickRoute(awaited=False):
        wait_blocking(Future(), lambda: signal.raise_signal(signal.SIGINT), lambda: interrupt.came)
        said.append("all of the stretch is done")


async def test_an_interrupt_ends_an_awaited_wait_at_once_and_is_raised_after_it() -> None:
    said: list[str] = []

    async def cell() -> None:
        with deferred() as interrupt:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            await wait_async(Future(), lambda: None, interrupt, interval=1000)
            said.append("all of the stretch is done")

    with pytest.raises(KeyboardInterrupt):
        await cell()
    assert said


async def test_a_cancelled_task_counts_as_an_interrupt() -> None:
    said: list[str] = []

    async def cell() -> None:
        with deferred() as interrupt:
            await wait_async(Future(), lambda: None, interrupt, interval=1000)
            said.append("all of the stretch is done")

    waiting = asyncio.create_task(_outcome(cell))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await waiting == "KeyboardInterrupt"
    assert said


async def _outcome(cell: Callable[[], Awaitable[None]]) -> str:
    try:
        await cell()
    except BaseException as error:
        return type(error).__name__
    return ""
