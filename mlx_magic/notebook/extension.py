"""What ``%load_ext mlx_magic`` installs in IPython, and how it is removed."""

from __future__ import annotations

from typing import Any

from mlx_magic.notebook.display import terminal
from mlx_magic.notebook.kernel import cell_errors, click_routing, completer
from mlx_magic.notebook.kernel.async_cells import AwaitedCells
from mlx_magic.notebook.magics import VisionMagics

_RESULT = ("mlx_magic", "VisionResult")
_POOL = ("mlx_magic.model_pool.pool", "ModelPool")
_MAP = ("mlx_magic", "MapResult")
_GALLERY = ("mlx_magic", "MapGallery")

_installed: dict[int, AwaitedCells] = {}


def load(ipython: Any) -> None:
    """Register magics, awaited cells, completion and formatters; idempotent."""
    if id(ipython) in _installed:
        return
    magics = VisionMagics(ipython)
    ipython.register_magics(magics)
    # Rewritten cells call `awaited` on this registry entry.
    ipython.magics_manager.registry["VisionMagics"] = magics
    cells = AwaitedCells(ipython)
    cells.install()
    cell_errors.install(ipython)
    completer.install(ipython, _model_names)
    _install_formatters(ipython)
    _installed[id(ipython)] = cells


def unload(ipython: Any) -> None:
    """Undo `load`. Models stay in the pool."""
    cells = _installed.pop(id(ipython), None)
    if cells is None:
        return
    cells.uninstall()
    cell_errors.uninstall(ipython)
    completer.uninstall(ipython)
    click_routing.uninstall()
    manager = ipython.magics_manager
    manager.registry.pop("VisionMagics", None)
    for kind in ("line", "cell"):
        manager.magics[kind].pop("vision", None)
    for module, name in (_RESULT, _POOL, _MAP, _GALLERY):
        ipython.display_formatter.mimebundle_formatter.deferred_printers.pop((module, name), None)
        _drop_printer(ipython, module, name)


def _model_names() -> list[str]:
    from mlx_magic import default_session

    # A name that is not printable cannot be typed; `%vision list` shows it escaped.
    return [name for name in default_session.current().model_names if name.isprintable()]


def _install_formatters(ipython: Any) -> None:
    """Register formatters by type name, so that the types are not imported."""
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

    def rows(result: Any, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from mlx_magic.notebook.maps.table import bundle

        return bundle(result)

    def gallery(shown: Any, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from mlx_magic.notebook.maps.table import gallery_bundle

        return gallery_bundle(shown)

    formatter.mimebundle_formatter.for_type_by_name(*_MAP, rows)
    formatter.mimebundle_formatter.for_type_by_name(*_GALLERY, gallery)


def _drop_printer(ipython: Any, module: str, name: str) -> None:
    """Remove a formatter that IPython has cached by class after its first use."""
    printers = ipython.display_formatter.mimebundle_formatter.type_printers
    for kind in [k for k in printers if (k.__module__, k.__name__) == (module, name)]:
        del printers[kind]
