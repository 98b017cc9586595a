"""Waiting for a generation or a load in a cell, with its view and its Cancel button."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from mlx_magic.engine.task import Task
from mlx_magic.interrupts import Interrupt
from mlx_magic.notebook.display import live_view, terminal
from mlx_magic.notebook.display.live_view import TerminalView, View, WidgetView
from mlx_magic.notebook.kernel import click_routing

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that an interrupted cell waits for the model to reach its next cancellation point."""

HEAD_START = (0.02, 0.08)
"""Seconds that a cell waits before it shows its view; after each it looks whether to go on."""

_BUSY = frozenset({"downloading", "loading", "decode"})


class RunningCell(Generic[T]):
    """A piece of work that a cell waits for.

    Parameters
    ----------
    ipython : InteractiveShell
    work : Task
        A generation or a load.
    awaited : bool
        Whether the cell awaits (top of a cell) or blocks (nested, or no kernel).
    alone : bool
        Whether the cell has shown nothing else so far, so that it may be cleared.
    show : bool
        False shows nothing at all.
    quick : bool
        Whether the work is often done before a view could be read: then none is shown.
    """

    def __init__(
        self,
        ipython: Any,
        work: Task[T],
        *,
        awaited: bool,
        alone: bool = False,
        show: bool = True,
        quick: bool = False,
    ) -> None:
        self._work = work
        self._quick = quick
        self._awaited = awaited
        self._alone = alone
        self._show = show
        self._has_kernel = getattr(ipython, "kernel", None) is not None

    async def awaited(self, interrupt: Interrupt) -> None:
        """Wait without holding the kernel's loop, until the work has its outcome.

        Parameters
        ----------
        interrupt : Interrupt
            Of the cell's guarded stretch. Once it came, the work is asked to stop; what is
            there after `PATIENCE` is its outcome then.
        """
        with self._cancelled_on_error():
            await self._head_start(interrupt)
        if self._quick and self._work.future.done():
            return
        with self._noted(), self._viewed() as view:
            future = self._work.future
            await click_routing.wait_async(future, view.update, interrupt)
            if not future.done():
                self._work.cancel()
                end = time.monotonic() + PATIENCE
                await click_routing.wait_async(
                    lambda: future.done() or interrupt.repeated or time.monotonic() > end,
                    view.update,
                    Interrupt(),
                )
                self._work.abandon()

    def blocking(self, interrupt: Interrupt) -> None:
        """Wait where nothing can be awaited, until the work has its outcome. See `awaited`."""
        future = self._work.future
        if self._quick:
            with self._cancelled_on_error():
                concurrent.futures.wait([future], timeout=sum(HEAD_START))
            if future.done():
                return
        with self._noted(), self._viewed() as view:
            click_routing.wait_blocking(future, view.update, lambda: interrupt.came)
            if not future.done():
                self._work.cancel()
                end = time.monotonic() + PATIENCE
                click_routing.wait_blocking(
                    future, view.update, lambda: interrupt.repeated or time.monotonic() > end
                )
                self._work.abandon()

    async def _head_start(self, interrupt: Interrupt) -> None:
        """Let the model begin before the view is built.

        Both need Python's lock, and the model would wait: 7 ms for the widgets of a
        view, 0.3 s in the first cell for importing what draws it (both measured).
        """
        if not (self._show and self._has_kernel):
            return
        if "ipywidgets" not in sys.modules:
            await click_routing.in_thread(live_view.import_libraries, interrupt)
        for pause in HEAD_START:
            await click_routing.pause(pause, interrupt)
            if interrupt.came or self._work.done or self._work.progress.phase in _BUSY:
                break

    @contextlib.contextmanager
    def _viewed(self) -> Iterator[View]:
        if not self._show:
            yield _Blind()
            return
        if not self._has_kernel:
            view: View = TerminalView(self._work)
            with self._cancelled_on_error():
                try:
                    yield view
                finally:
                    view.leave(alone=False)
            return
        with self._cancelled_on_error(), click_routing.ClickRoute(awaited=self._awaited) as route:
            widget = WidgetView(self._work, why_no_click=route.reason)
            try:
                with route.watch(widget.button, self._work.cancel):
                    try:
                        widget.show()
                        yield widget
                    finally:
                        widget.leave(alone=self._alone)
            finally:
                self._close_later(widget)

    @contextlib.contextmanager
    def _cancelled_on_error(self) -> Iterator[None]:
        """Nobody would see the answer of a cell that failed."""
        try:
            yield
        except BaseException:
            self._work.abandon()
            raise

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Say, after the view, what happened on the way: what was unloaded to make room."""
        try:
            yield
        finally:
            for note in self._work.notes if self._show else ():
                terminal.say(note)

    def _close_later(self, view: View) -> None:
        """Keep the view on the page until the result has taken its place, or it would jump."""
        try:
            asyncio.get_running_loop().call_later(0.5, view.close)
        except RuntimeError:
            view.close()


class _Blind:
    """A view that shows nothing."""

    def show(self) -> None: ...

    def update(self) -> None: ...

    def leave(self, *, alone: bool) -> None: ...

    def close(self) -> None: ...
