"""A cell that waits for a task (generation, load, unload), with a view and a Cancel button."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

from mlx_magic.engine.task import Task
from mlx_magic.interrupts import Interrupt
from mlx_magic.notebook.display import live_view, terminal
from mlx_magic.notebook.display.live_view import LiveWidgets, TerminalView, View, WidgetView
from mlx_magic.notebook.kernel import click_routing

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that an interrupted cell waits for the task to reach a cancellation point."""

HEAD_START = (0.02, 0.08)
"""Pauses before the view is shown, in seconds; after each it may be shown early."""

_BUSY = frozenset({"downloading", "loading", "decode"})


class RunningCell(Generic[T]):
    """Waits for a task in a cell.

    Parameters
    ----------
    ipython : InteractiveShell
    task : Task
        A generation, a load or an unload.
    awaited : bool
        Whether the cell awaits (top of a cell) or blocks (nested, or no kernel).
    alone : bool
        Whether the cell has no other output yet, so that its output may be cleared.
    show : bool
        False shows nothing.
    quick : bool
        Whether the task usually ends at once: then a view is only shown if it does not.
    widgets : callable
        Takes why clicks are not received ("" if they are); returns the view of a kernel.
    terminal : callable
        Returns the view of a terminal.
    tick : callable
        Called before each wait, on the thread that runs cells.
    """

    def __init__(
        self,
        ipython: Any,
        task: Task[T],
        *,
        awaited: bool,
        alone: bool = False,
        show: bool = True,
        quick: bool = False,
        widgets: Callable[[str], LiveWidgets] | None = None,
        terminal: Callable[[], View] | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._task = task
        self._widgets = widgets or (lambda reason: WidgetView(task, why_no_click=reason))
        self._terminal = terminal or (lambda: TerminalView(task))
        self._tick = tick
        self._quick = quick
        self._awaited = awaited
        self._alone = alone
        self._show = show
        self._has_kernel = getattr(ipython, "kernel", None) is not None

    async def awaited(self, interrupt: Interrupt) -> None:
        """Wait for the outcome without blocking the kernel's event loop.

        Parameters
        ----------
        interrupt : Interrupt
            The cell's deferred interrupt. When it is set, the task is cancelled; after at most
            `PATIENCE` seconds its partial result is the outcome.
        """
        with self._cancelled_on_error():
            await self._head_start(interrupt)
        if self._quick and self._task.future.done():
            return
        with self._notes_printed(), self._shown_view() as view:
            future = self._task.future
            await click_routing.wait_async(future, partial(self._update, view), interrupt)
            if not future.done():
                self._task.cancel()
                deadline = time.monotonic() + PATIENCE
                await click_routing.wait_async(
                    lambda: future.done() or interrupt.repeated or time.monotonic() > deadline,
                    partial(self._update, view),
                    Interrupt(),
                )
                self._task.abandon()

    def blocking(self, interrupt: Interrupt) -> None:
        """Wait for the outcome by blocking. See `awaited`."""
        future = self._task.future
        if self._quick:
            with self._cancelled_on_error():
                concurrent.futures.wait([future], timeout=sum(HEAD_START))
            if future.done():
                return
        with self._notes_printed(), self._shown_view() as view:
            click_routing.wait_blocking(future, partial(self._update, view), lambda: interrupt.came)
            if not future.done():
                self._task.cancel()
                deadline = time.monotonic() + PATIENCE
                click_routing.wait_blocking(
                    future,
                    partial(self._update, view),
                    lambda: interrupt.repeated or time.monotonic() > deadline,
                )
                self._task.abandon()

    def _update(self, view: View) -> None:
        self._tick()
        view.update()

    async def _head_start(self, interrupt: Interrupt) -> None:
        """Let the model start before the view is built.

        Both need the GIL, and the model would wait: 7 ms for the widgets of a view, 0.3 s in
        the first cell for imports (both measured).
        """
        if not (self._show and self._has_kernel):
            return
        if "ipywidgets" not in sys.modules:
            await click_routing.in_thread(live_view.import_libraries, interrupt)
        for pause in HEAD_START:
            await click_routing.pause(pause, interrupt)
            if interrupt.came or self._task.done or self._task.progress.phase in _BUSY:
                break

    @contextlib.contextmanager
    def _shown_view(self) -> Iterator[View]:
        if not self._show:
            yield _NullView()
            return
        if not self._has_kernel:
            view: View = self._terminal()
            with self._cancelled_on_error():
                try:
                    yield view
                finally:
                    view.leave(alone=False)
            return
        with self._cancelled_on_error(), click_routing.ClickRoute(awaited=self._awaited) as route:
            widget = self._widgets(route.reason)
            try:
                with contextlib.ExitStack() as watched:
                    for button, clicked in widget.buttons:
                        watched.enter_context(route.watch(button, clicked))
                    try:
                        widget.show()
                        yield widget
                    finally:
                        widget.leave(alone=self._alone)
            finally:
                self._close_later(widget)

    @contextlib.contextmanager
    def _cancelled_on_error(self) -> Iterator[None]:
        """Abandon the task if the cell fails, as its answer could not be shown."""
        try:
            yield
        except BaseException:
            self._task.abandon()
            raise

    @contextlib.contextmanager
    def _notes_printed(self) -> Iterator[None]:
        """Print the task's notes after the view, such as the models that were evicted."""
        try:
            yield
        finally:
            for note in self._task.notes if self._show else ():
                terminal.say(note)

    def _close_later(self, view: View) -> None:
        """Close the view after the result has replaced it, or the page would jump."""
        try:
            asyncio.get_running_loop().call_later(0.5, view.close)
        except RuntimeError:
            view.close()


class _NullView:
    """A view that shows nothing."""

    def show(self) -> None: ...

    def update(self) -> None: ...

    def leave(self, *, alone: bool) -> None: ...

    def close(self) -> None: ...
