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

WAITED_FOR = (LoadCommand, UnloadCommand)


def blocking(ipython: Any, session: Session, command: LoadCommand | UnloadCommand) -> None:
    """Do what a command asks where nothing can be awaited, and say what became of it."""
    with deferred() as interrupt, _all_ended_on_error() as works:
        works += _begun(session, command)
        for work in works:
            _cell(ipython, work, awaited=False).blocking(interrupt)
            _told(work, works)


async def awaited(
    ipython: Any, session: Session, command: LoadCommand | UnloadCommand, *, alone: bool
) -> None:
    """Do what a command asks without holding the kernel's loop. See `RunningCell`."""
    with deferred() as interrupt, _all_ended_on_error() as works:
        works += _begun(session, command)
        for work in works:
            await _cell(ipython, work, awaited=True, alone=alone).awaited(interrupt)
            _told(work, works)
            alone = False


def _begun(session: Session, command: LoadCommand | UnloadCommand) -> Sequence[Load | Unload]:
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


def _cell(
    ipython: Any, work: Load | Unload, *, awaited: bool, alone: bool = False
) -> RunningCell[Any]:
    quick = isinstance(work, Unload)
    # An unload that waits for nobody is done soon, and nobody could cancel it.
    show = not (isinstance(work, Unload) and work.begun)
    return RunningCell(ipython, work, awaited=awaited, alone=alone, show=show, quick=quick)


def _told(work: Load | Unload, works: Sequence[Load | Unload]) -> None:
    """Say what became of one; a Cancel ends those that come after it, too."""
    terminal.say(pool_messages.ended(work))
    if work.token.requested:
        for other in works:
            other.cancel()


@contextlib.contextmanager
def _all_ended_on_error() -> Iterator[list[Load | Unload]]:
    """Leave nothing behind a cell that failed; yields where the works are to be put."""
    works: list[Load | Unload] = []
    try:
        yield works
    except BaseException:
        for work in works:
            work.cancel()
        raise
