"""Cells that wait for the pool: ``%vision load`` and ``%vision unload``."""

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
    """Do what a command asks where nothing can be awaited, and say what became of it."""
    with deferred() as interrupt, _cancel_all_on_error() as tasks:
        tasks += _start(session, command)
        for task in tasks:
            _running_cell(ipython, task, awaited=False).blocking(interrupt)
            _report(task, tasks)


async def awaited(
    ipython: Any, session: Session, command: LoadCommand | UnloadCommand, *, alone: bool
) -> None:
    """Do what a command asks without holding the kernel's loop. See `RunningCell`."""
    with deferred() as interrupt, _cancel_all_on_error() as tasks:
        tasks += _start(session, command)
        for task in tasks:
            await _running_cell(ipython, task, awaited=True, alone=alone).awaited(interrupt)
            _report(task, tasks)
            alone = False


def _start(session: Session, command: LoadCommand | UnloadCommand) -> Sequence[Load | Unload]:
    """Begin all at once, so that one which has to wait holds up no other."""
    if isinstance(command, LoadCommand):
        load = session.load(
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
    # An unload that waits for nobody is done soon, and nobody could cancel it.
    show = not (isinstance(task, Unload) and task.begun)
    return RunningCell(ipython, task, awaited=awaited, alone=alone, show=show, quick=quick)


def _report(task: Load | Unload, tasks: Sequence[Load | Unload]) -> None:
    """Say what became of one; a Cancel ends those that come after it, too."""
    terminal.say(pool_messages.ended(task))
    if task.token.requested:
        for other in tasks:
            other.cancel()


@contextlib.contextmanager
def _cancel_all_on_error() -> Iterator[list[Load | Unload]]:
    """Leave nothing behind a cell that failed; yields where the works are to be put."""
    tasks: list[Load | Unload] = []
    try:
        yield tasks
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
