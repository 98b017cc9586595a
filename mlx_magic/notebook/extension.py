"""What ``%load_ext mlx_magic`` puts into IPython, and takes out again."""

from __future__ import annotations

from typing import Any

from mlx_magic.notebook.display import terminal
from mlx_magic.notebook.kernel import click_routing, completer
from mlx_magic.notebook.kernel.async_cells import AwaitedCells
from mlx_magic.notebook.magics import VisionMagics

_RESULT = ("mlx_magic", "VisionResult")
_POOL = ("mlx_magic.model_pool.pool", "ModelPool")

_installed: dict[int, AwaitedCells] = {}


def load(ipython: Any) -> None:
    """Register magics, awaited cells, completion and display; a second time changes nothing."""
    if id(ipython) in _installed:
        return
    magics = VisionMagics(ipython)
    ipython.register_magics(magics)
    # Also for `awaited`, which looks the instance up by its class's name.
    ipython.magics_manager.registry["VisionMagics"] = magics
    cells = AwaitedCells(ipython)
    cells.install()
    completer.install(ipython, _model_names)
    _install_formatters(ipython)
    _installed[id(ipython)] = cells


def unload(ipython: Any) -> None:
    """Take out what `load` put in. Models stay in the pool."""
    cells = _installed.pop(id(ipython), None)
    if cells is None:
        return
    cells.uninstall()
    completer.uninstall(ipython)
    click_routing.uninstall()
    manager = ipython.magics_manager
    manager.registry.pop("VisionMagics", None)
    for kind in ("line", "cell"):
        manager.magics[kind].pop("vision", None)
    for module, name in (_RESULT, _POOL):
        ipython.display_formatter.mimebundle_formatter.deferred_printers.pop((module, name), None)
        _drop_printer(ipython, module, name)


def _model_names() -> list[str]:
    from mlx_magic import default_session

    # What is no printable line can be typed by nobody; the list shows that it is there.
    return [name for name in default_session.current().model_names if name.isprintable()]


def _install_formatters(ipython: Any) -> None:
    """Show results and the pool richly; by name, so that nothing is imported for it."""
    formatter = ipython.display_formatter

    def bundle(result: Any, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from mlx_magic.notebook.display import render

        return render.bundle(result)

    formatter.mimebundle_formatter.for_type_by_name(*_RESULT, bundle)

    def table(pool: Any, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from mlx_magic.notebook.display.tables import pool_table

        shown = pool_table(pool)
        return {"text/plain": terminal.printable(repr(shown)), "text/html": shown._repr_html_()}

    formatter.mimebundle_formatter.for_type_by_name(*_POOL, table)


def _drop_printer(ipython: Any, module: str, name: str) -> None:
    """Forget a formatter that was used, and so is kept by its class."""
    printers = ipython.display_formatter.mimebundle_formatter.type_printers
    for kind in [k for k in printers if (k.__module__, k.__name__) == (module, name)]:
        del printers[kind]
