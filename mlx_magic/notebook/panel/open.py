"""Opening a panel; a cell has at most one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlx_magic import session as sessions
from mlx_magic.argument_checks import short_repr
from mlx_magic.errors import RequestError
from mlx_magic.notebook.panel.panel import Panel

if TYPE_CHECKING:
    from mlx_magic.session import Session

_panel_by_cell: dict[str, Panel] = {}


def panel(session: Session | None = None, ipython: Any = None) -> Panel:
    """Open a panel in the notebook; as the last expression of a cell it is displayed.

    A cell that is run again opens a new panel and closes its previous one.

    Parameters
    ----------
    session : Session, optional
        The session it uses; by default that of the cells.
    ipython : InteractiveShell, optional
        The shell whose variables it sees; by default the running one.

    Returns
    -------
    Panel

    Raises
    ------
    RequestError
        If `session` is not a Session.
    """
    if session is not None and not isinstance(session, sessions.Session):
        raise RequestError(
            f"session is {short_repr(session)}: use an mlx_magic session, or leave it out.",
            option="session",
        )
    if ipython is None:
        from IPython.core.getipython import get_ipython

        ipython = get_ipython()
    opened = Panel(session, ipython)
    if cell := _cell_id(ipython):
        previous = _panel_by_cell.get(cell)
        _panel_by_cell[cell] = opened
        if previous is not None:
            previous.close()
    return opened


def _cell_id(ipython: Any) -> str:
    """Return the id of the running cell; ``""`` if the front end does not send it."""
    parent: Any = getattr(ipython, "get_parent", dict)()
    metadata = parent.get("metadata") if isinstance(parent, Mapping) else None
    return str(metadata.get("cellId") or "") if isinstance(metadata, Mapping) else ""
