"""Opening a panel: one for each cell, as its output is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlx_magic import session as sessions
from mlx_magic.argument_checks import short_repr
from mlx_magic.errors import RequestError
from mlx_magic.notebook.panel.panel import Panel

if TYPE_CHECKING:
    from mlx_magic.session import Session

_in_cells: dict[str, Panel] = {}


def panel(session: Session | None = None, ipython: Any = None) -> Panel:
    """Open a panel in the notebook; as the last line of a cell it shows itself.

    A cell that is run again has a new panel in its output, and the one before is closed.

    Parameters
    ----------
    session : Session, optional
        What it drives; by default what the cells use.
    ipython : InteractiveShell, optional
        Whose variables it sees; by default the one that runs.

    Returns
    -------
    Panel

    Raises
    ------
    RequestError
        If `session` is none.
    """
    if session is not None and not isinstance(session, sessions.Session):
        raise RequestError(
            f"session is {short_repr(session)}: use an mlx_magic session, or leave it out.",
            option="session",
        )
    if ipython is None:
        from IPython.core.getipython import get_ipython

        ipython = get_ipython()
    made = Panel(session, ipython)
    if cell := _cell_id(ipython):
        before = _in_cells.get(cell)
        _in_cells[cell] = made
        if before is not None:
            before.close()
    return made


def _cell_id(ipython: Any) -> str:
    """Return the id of the cell that runs, where the front end tells it."""
    parent: Any = getattr(ipython, "get_parent", dict)()
    metadata = parent.get("metadata") if isinstance(parent, Mapping) else None
    return str(metadata.get("cellId") or "") if isinstance(metadata, Mapping) else ""
