"""``%vision journal``: what is stored, its size, its export and its end."""

from __future__ import annotations

import time

from mlx_magic.data.journal.location import default_path
from mlx_magic.data.journal.store import Journal, JournalEntry
from mlx_magic.errors import RequestError
from mlx_magic.formatting import amount, shown
from mlx_magic.notebook.display import terminal
from mlx_magic.notebook.display.tables import Table
from mlx_magic.notebook.magic_line.commands import JournalCommand
from mlx_magic.user_folders import absolute


def run(command: JournalCommand, setting: str | bool | None = None) -> Table | None:
    """Run the command; return the table of a list.

    Parameters
    ----------
    command : JournalCommand
    setting : str, bool or None
        The value of ``%config VisionMagics.journal``.

    Raises
    ------
    RequestError
        There is no journal, or it cannot be used.
    """
    named = command.path or (setting if isinstance(setting, str) else None)
    path = absolute(named) if named else default_path()
    if not path.is_file():
        raise RequestError(
            f"There is no journal {shown(str(path))}: a map makes it.", option="journal"
        )
    journal = Journal(path)
    try:
        if command.export is not None:
            count = journal.export(absolute(command.export), command.number)
            terminal.say(f"Wrote {_answers(count)} to {shown(command.export)}.")
            return None
        if command.forget:
            terminal.say(f"Deleted {_answers(journal.forget(command.number))}.")
            return None
        return table(journal)
    finally:
        journal.close()


def table(journal: Journal) -> Table:
    """Return the maps of a journal, the newest first."""
    rows = tuple(_row(entry) for entry in journal.entries())
    note = f"{shown(str(journal.path))}: {amount(journal.nbytes)}."
    return Table(("map", "last run", "question", "model", "images", "answers", "size"), rows, note)


def _row(entry: JournalEntry) -> tuple[str, ...]:
    return (
        str(entry.id),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.began)),
        shown(entry.prompt, 60),
        shown(entry.model, 40),
        entry.images,
        f"{entry.answers:,}",
        amount(entry.nbytes),
    )


def _answers(count: int) -> str:
    return f"{count:,} answer{'s' * (count != 1)}"
