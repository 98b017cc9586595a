"""The commands that wait for the pool: ``%vision load`` and ``%vision unload``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlx_magic.interrupts import deferred
from mlx_magic.model_pool.unload import Unload
from mlx_magic.notebook.display import pool_messages, terminal
from mlx_magic.notebook.kernel.running_cell import RunningCell
from mlx_magic.notebook.magic_line.commands import LoadCommand, UnloadCommand

if TYPE_CHECKING:
    from mlx_magic.model_pool.model_info import Load
    from mlx_magic.session import Session

WAITING_COMMANDS = (LoadCommand, UnloadCommand)


def blocking(ipython: Any, session: Session, command: LoadCommand | UnloadCommand) -> None:
    """Run a command in a cell that blocks, and print the outcome."""
    with deferred() as interrupt, _cancel_all_on_error() as tasks:
        tasks += _start(session, command)
        for task in tasks:
            _running_cell(ipython, task, awaited=False).blocking(interrupt)
            _report(task, tasks)


async def awaited(
    ipython: Any, session: Session, command: LoadCommand | UnloadCommand, *, alone: bool
) -> None:
    """Run a command without blocking the kernel's event loop. See `RunningCell`."""
    with deferred() as interrupt, _cancel_all_on_error() as tasks:
        tasks += _start(session, command)
        for task in tasks:
            await _running_cell(ipython, task, awaited=True, alone=alone).awaited(interrupt)
            _report(task, tasks)
            alone = False


def _start(session: Session, command: LoadCommand | UnloadCommand) -> Sequence[Load | Unload]:
    """Start all tasks at once, so that one that waits does not delay the others."""
    if isinstance(command, LoadCommand):
        load = session.pool.submit_load(
            command.model,
            alias=command.alias,
            trust_remote_code=command.trust_remote_code,
            pin=command.pin,
            adapter=command.adapter,
            save=command.save,
        )
        return [load]
    names = [m.name for m in session.pool] if command.model is None else [command.model]
    if not names:
        terminal.say("No model is loaded.")
    return [session.pool.submit_unload(name, force=command.force) for name in names]


def _running_cell(
    ipython: Any, task: Load | Unload, *, awaited: bool, alone: bool = False
) -> RunningCell[Any]:
    quick = isinstance(task, Unload)
    # An unload that has begun is quick and can no longer be cancelled.
    show = not (isinstance(task, Unload) and task.begun)
    return RunningCell(ipython, task, awaited=awaited, alone=alone, show=show, quick=quick)


def _report(task: Load | Unload, tasks: Sequence[Load | Unload]) -> None:
    """Print the outcome of a task; if it was cancelled, cancel the remaining tasks."""
    terminal.say(pool_messages.ended(task))
    if task.token.requested:
        for other in tasks:
            other.cancel()


@contextlib.contextmanager
def _cancel_all_on_error() -> Iterator[list[Load | Unload]]:
    """Cancel all tasks if the cell fails; yields the list that the tasks are added to."""
    tasks: list[Load | Unload] = []
    try:
        yield tasks
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
