"""Waiting in a cell so that clicks on its Cancel button, and interrupts, are received."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from mlx_magic.interrupts import Interrupt
from mlx_magic.notebook.kernel.shell_tap import TAP, Kernel, ShellTap, context_for_threads

if TYPE_CHECKING:
    import ipywidgets as widgets

INTERVAL = 0.08
"""Seconds between two ticks: the delay of an interrupt, and in ipykernel 6 of a click."""

# Since this version of ipykernel, comm messages are handled while an async cell awaits.
_COMMS_PASS_AWAITING_CELLS = (7, 4)

_tap: ShellTap | None = None  # one process has one kernel


class ClickRoute:
    """Delivers clicks to one running cell, while it is entered.

    Parameters
    ----------
    awaited : bool
        Whether the cell awaits (`wait_async`) or blocks (`wait_blocking`).
    kernel : ipykernel.kernelbase.Kernel or None
        Default: the kernel of this process, if there is one.

    Attributes
    ----------
    works : bool
        Whether clicks are received while the cell runs.
    reason : str
        Why not, for a tooltip; empty if they are.
    """

    def __init__(self, *, awaited: bool, kernel: Kernel = None) -> None:
        kernel = _current_kernel() if kernel is None else kernel
        self._tap = _tap_of(kernel)
        self._awaited = awaited
        self._cleanup = ExitStack()
        self.reason = "" if self._tap is not None else _unreachable_reason(kernel, awaited=awaited)
        self.works = not self.reason

    def __enter__(self) -> ClickRoute:
        """Install the tap. Enter before the button is created, or an early click is lost."""
        if self._tap is not None:
            self._tap.install()
            self._tap.cell_began()
            self._cleanup.callback(self._tap.cell_ended)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the route. The tap stays installed and only forwards messages; see `uninstall`."""
        self._cleanup.close()

    @contextmanager
    def watch(self, button: widgets.Button, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` when the button is clicked, through the tap or as a widget event.

        Parameters
        ----------
        button : ipywidgets.Button
        callback : callable
            May be called twice for one click and from any thread, so it should only set a
            `CancelToken`.
        """

        def clicked(_: object) -> None:
            callback()

        comm_id = button.model_id
        button.on_click(clicked)
        if self._tap is not None and comm_id is not None:
            self._tap.add(comm_id, callback)
        try:
            yield
        finally:
            if self._tap is not None and comm_id is not None:
                self._tap.discard(comm_id)
            button.on_click(clicked, remove=True)


def watch_always(button: widgets.Button, callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback` once for each click, as soon as the kernel receives it, even in a cell.

    If the kernel cannot be tapped, clicks arrive as ordinary widget events.

    Parameters
    ----------
    button : ipywidgets.Button
    callback : callable
        Called on the thread that reads the channel or on the one that handles messages, so it
        should only set a `CancelToken`.

    Returns
    -------
    callable
        Ends the watch.
    """
    tap, comm_id = _tap_of(_current_kernel()), button.model_id
    count_lock = threading.Lock()
    early_clicks = 0

    def received() -> None:
        nonlocal early_clicks
        with count_lock:
            early_clicks += 1
        callback()

    def handled(_: object) -> None:
        """Ignore a click that was already received: its meaning may have changed since."""
        nonlocal early_clicks
        with count_lock:
            already_received, early_clicks = early_clicks > 0, max(0, early_clicks - 1)
        if not already_received:
            callback()

    def end() -> None:
        button.on_click(handled, remove=True)
        if tap is not None and comm_id is not None:
            tap.discard(comm_id)

    button.on_click(handled)
    if tap is not None and comm_id is not None:
        tap.install()
        tap.add(comm_id, received)
    return end


def thread_context() -> contextvars.Context:
    """Return a context in which threads can send widget messages; copy it for each thread."""
    return context_for_threads(_current_kernel())


def uninstall() -> None:
    """Remove the tap from the kernel's shell channel."""
    global _tap
    if _tap is not None:
        _tap.remove()
        _tap = None


async def wait_async(
    done: concurrent.futures.Future[Any] | Callable[[], bool],
    tick: Callable[[], None],
    interrupt: Interrupt | None = None,
    interval: float = INTERVAL,
) -> None:
    """Wait without blocking the event loop.

    Parameters
    ----------
    done : concurrent.futures.Future or callable
        Condition to wait for. The caller fetches its result or exception.
    tick : callable
        Called on this thread before each wait, to update the view.
    interrupt : Interrupt, optional
        Ends the wait when set; it is set when the cell's task is cancelled.
    interval : float
        Seconds between two ticks; a finished future ends the wait at once.

    Raises
    ------
    asyncio.CancelledError
        If the cell's task is cancelled and there is no `interrupt`. `done` is not cancelled.
    """
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not finished.done():
            finished.set_result(None)

    def wake(_: object = None) -> None:
        # After an interrupt the task may end after the loop was closed.
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish)

    is_done = done.done if isinstance(done, concurrent.futures.Future) else done
    if isinstance(done, concurrent.futures.Future):
        # Not wrap_future: it cancels the task with the cell and logs exceptions not retrieved.
        done.add_done_callback(wake)
    noted = interrupt or Interrupt()
    with noted.notifying(wake):
        while not is_done() and not noted.came:
            tick()
            # Interrupts are noticed only when the wait wakes up, hence the timeout.
            try:
                await asyncio.wait({finished}, timeout=interval)
            except asyncio.CancelledError:
                if interrupt is None:
                    raise
                interrupt.note()


async def pause(seconds: float, interrupt: Interrupt) -> None:
    """Yield the event loop for some seconds; an interrupt ends the pause and is noted."""
    end = time.monotonic() + seconds
    await wait_async(lambda: time.monotonic() >= end, lambda: None, interrupt, seconds)


async def in_thread(function: Callable[[], object], interrupt: Interrupt) -> None:
    """Call a function on a thread and wait for it; an interrupt ends the wait, and is noted."""
    # Not the executor's own future, whose end would be noticed only at the next tick.
    future: concurrent.futures.Future[object] = concurrent.futures.Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    asyncio.get_running_loop().run_in_executor(None, call)
    await wait_async(future, lambda: None, interrupt)
    if future.done():
        future.result()


def wait_blocking(
    future: concurrent.futures.Future[Any],
    tick: Callable[[], None],
    should_stop: Callable[[], bool] = lambda: False,
    interval: float = INTERVAL,
) -> None:
    """Block inside a `ClickRoute`, where nothing can be awaited: nested cell, code, terminal.

    Parameters
    ----------
    future : concurrent.futures.Future
        Condition to wait for. The caller fetches its result or exception.
    tick : callable
        Called on this thread before each wait, to update the view.
    should_stop : callable
        Whether to end the wait early.
    interval : float
        Seconds between two ticks; a finished future ends the wait at once.
    """
    while not future.done() and not should_stop():
        tick()
        if _tap is not None:
            _tap.flush()
        concurrent.futures.wait([future], timeout=interval)


def _current_kernel() -> Kernel:
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None)


def _tap_of(kernel: Kernel) -> ShellTap | None:
    global _tap
    if kernel is None or not ShellTap.supported(kernel):
        # Other kernels than ipykernel's never had such a channel.
        if type(kernel).__module__.partition(".")[0] == "ipykernel":
            TAP.turn_off("has another shell channel")
        return None
    if _tap is None or _tap.kernel is not kernel:
        _tap = ShellTap(kernel)
    return _tap


def _unreachable_reason(kernel: Kernel, *, awaited: bool) -> str:
    """Return why clicks are not received without a tap; empty if they are."""
    if kernel is None:
        return "There is no notebook kernel: press Ctrl-C."
    version = getattr(sys.modules.get("ipykernel"), "version_info", (0,))[:2]
    if awaited and version >= _COMMS_PASS_AWAITING_CELLS:
        return ""
    return "Clicks do not reach a running cell here: use the kernel's interrupt."
