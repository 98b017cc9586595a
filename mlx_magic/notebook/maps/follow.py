"""Waiting for a map that code has started: with a view in a kernel, with a line in a terminal."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from mlx_magic.data.mapping.plan import MapPlan
from mlx_magic.data.mapping.result import MapProgress, MapResult
from mlx_magic.data.mapping.run import MapTask, start
from mlx_magic.interrupts import Interrupt, deferred

if TYPE_CHECKING:
    from mlx_magic.session import Session

_WAIT = 0.05
_PATIENCE = 5.0
"""Seconds that an interrupted call waits for the running requests to end."""


def follow(
    session: Session, plan: MapPlan, on_progress: Callable[[MapProgress], object] | None
) -> MapResult:
    """Run a map, and wait for its end.

    Raises
    ------
    MlxMagicError
        The map failed.
    KeyboardInterrupt
        On an interrupt, after the map was cancelled.
    """
    shell = _shell()
    with deferred() as interrupt:
        task = start(session, plan, on_progress)
        if shell is not None:
            from mlx_magic.notebook.maps.cell import running_cell

            running_cell(shell, task, awaited=False).blocking(interrupt)
        else:
            _wait(task, interrupt)
    result = task.future.result()
    if shell is None:
        # What a folder left out is in the result; that nothing is stored must not be missed.
        for note in task.notes:
            if note != plan.rows.note:
                warnings.warn(note, stacklevel=3)
    return result


def _wait(task: MapTask, interrupt: Interrupt) -> None:
    """Wait where there is no IPython; take the images of a generator meanwhile."""
    line = None
    if sys.stderr is not None and sys.stderr.isatty():
        from mlx_magic.notebook.maps.terminal_line import TerminalLine

        line = TerminalLine(task)
    try:
        deadline: float | None = None
        while not task.future.done():
            task.serve()
            if interrupt.came and deadline is None:
                task.cancel()
                deadline = time.monotonic() + _PATIENCE
            if interrupt.repeated or (deadline is not None and time.monotonic() > deadline):
                task.abandon()
            if line is not None:
                line.update()
            try:
                task.future.exception(timeout=_WAIT)
            except FutureTimeout:
                continue
    finally:
        if line is not None:
            line.leave(alone=False)


def _shell() -> Any:
    """Return the IPython shell of a kernel; None elsewhere. IPython is not imported for this."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None
