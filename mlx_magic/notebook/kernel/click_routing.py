"""Waiting for work in a cell so that a click on its Cancel button, or an interrupt, arrives."""

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
from mlx_magic.notebook.kernel.shell_tap import Kernel, ShellTap, context_for_threads

if TYPE_CHECKING:
    import ipywidgets as widgets

INTERVAL = 0.08
"""Seconds between two looks at the work: what an interrupt, or in ipykernel 6 a click, may wait."""

# Since this version of ipykernel, comm messages are handled while an async cell awaits.
_COMMS_PASS_AWAITING_CELLS = (7, 4)

_tap: ShellTap | None = None  # one process has one kernel


class ClickRoute:
    """How clicks reach one running cell; entering it makes the way ready.

    Parameters
    ----------
    awaited : bool
        Whether the cell awaits its work (`wait_async`) or blocks (`wait_blocking`).
    kernel : ipykernel.kernelbase.Kernel or None
        Default: the kernel of this process, if there is one.

    Attributes
    ----------
    works : bool
        Whether a click can arrive while the cell runs.
    reason : str
        Why not, in words for a tooltip; empty if it can.
    """

    def __init__(self, *, awaited: bool, kernel: Kernel = None) -> None:
        kernel = _current_kernel() if kernel is None else kernel
        self._tap = _tap_of(kernel)
        self._awaited = awaited
        self._entered = ExitStack()
        self.reason = "" if self._tap is not None else _why_not(kernel, awaited=awaited)
        self.works = not self.reason

    def __enter__(self) -> ClickRoute:
        """Make the way ready; do so before the button is made, or an early click is lost."""
        if self._tap is not None:
            self._tap.install()
            self._tap.cell_began()
            self._entered.callback(self._tap.cell_ended)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave the tap in place: between cells it only passes messages on; see `uninstall`."""
        self._entered.close()

    @contextmanager
    def watch(self, button: widgets.Button, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` when the button is clicked, on whichever way the click comes.

        Parameters
        ----------
        button : ipywidgets.Button
        callback : callable
            May be called twice for one click and from any thread, so it should do no more than
            set a `CancelToken`.
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
    """Call `callback` once for each click, as soon as the kernel receives it, cell or no cell.

    Where the kernel cannot be tapped, clicks come as they come.

    Parameters
    ----------
    button : ipywidgets.Button
    callback : callable
        Called on the thread that reads the channel or on the one that handles messages: it
        should do no more than set a `CancelToken`.

    Returns
    -------
    callable
        Ends the watch.
    """
    tap, comm_id = _tap_of(_current_kernel()), button.model_id
    counting = threading.Lock()
    early = 0

    def received() -> None:
        nonlocal early
        with counting:
            early += 1
        callback()

    def handled(_: object) -> None:
        """Leave out a click that was received before: by now it may mean something else."""
        nonlocal early
        with counting:
            known, early = early > 0, max(0, early - 1)
        if not known:
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
    """Return the context in which a thread can send widget messages; copy it for each thread."""
    return context_for_threads(_current_kernel())


def uninstall() -> None:
    """Leave the kernel's shell channel as it was before the first `ClickRoute`."""
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
    """Wait without holding the event loop.

    Parameters
    ----------
    done : concurrent.futures.Future or callable
        What is waited for. Its result and its exception are left to the caller.
    tick : callable
        Called on this thread before each wait, to bring the view up to date.
    interrupt : Interrupt, optional
        Ends the wait once it came, and notes it when the cell's task is cancelled.
    interval : float
        Seconds between two ticks; a future wakes the wait at once.

    Raises
    ------
    asyncio.CancelledError
        If the cell's task is cancelled, where there is no `interrupt`. The work is not.
    """
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not finished.done():
            finished.set_result(None)

    def wake(_: object = None) -> None:
        # After an interrupt the work may end when the loop is long closed.
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish)

    is_done = done.done if isinstance(done, concurrent.futures.Future) else done
    if isinstance(done, concurrent.futures.Future):
        # Not wrap_future: it cancels the work with the cell and logs errors that nobody fetched.
        done.add_done_callback(wake)
    noted = interrupt or Interrupt()
    with noted.notifying(wake):
        while not is_done() and not noted.came:
            tick()
            # The timeout is there for interrupts too: they are seen at a wake-up only.
            try:
                await asyncio.wait({finished}, timeout=interval)
            except asyncio.CancelledError:
                if interrupt is None:
                    raise
                interrupt.note()


async def pause(seconds: float, interrupt: Interrupt) -> None:
    """Let others have the event loop; an interrupt ends the pause, and is noted."""
    end = time.monotonic() + seconds
    await wait_async(lambda: time.monotonic() >= end, lambda: None, interrupt, seconds)


async def in_thread(function: Callable[[], object], interrupt: Interrupt) -> None:
    """Call a function on a thread and wait for it; an interrupt ends the wait, and is noted."""
    future = asyncio.get_running_loop().run_in_executor(None, function)
    await wait_async(future.done, lambda: None, interrupt, 0.02)
    if future.done():
        future.result()


def wait_blocking(
    future: concurrent.futures.Future[Any],
    tick: Callable[[], None],
    enough: Callable[[], bool] = lambda: False,
    interval: float = INTERVAL,
) -> None:
    """Wait, inside a `ClickRoute`, where nothing can be awaited: nested, in code, in a terminal.

    Parameters
    ----------
    future : concurrent.futures.Future
        What is waited for. Its result and its exception are left to the caller.
    tick : callable
        Called on this thread before each wait, to bring the view up to date.
    enough : callable
        Whether to wait no longer.
    interval : float
        Seconds between two ticks; the future wakes the wait at once.
    """
    while not future.done() and not enough():
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
        return None
    if _tap is None or _tap.kernel is not kernel:
        _tap = ShellTap(kernel)
    return _tap


def _why_not(kernel: Kernel, *, awaited: bool) -> str:
    """Return why a click cannot arrive without a tap; empty if it can."""
    if kernel is None:
        return "There is no notebook kernel: press Ctrl-C."
    version = getattr(sys.modules.get("ipykernel"), "version_info", (0,))[:2]
    if awaited and version >= _COMMS_PASS_AWAITING_CELLS:
        return ""
    return "Clicks do not reach a running cell here: use the kernel's interrupt."
