"""Vision-language models that live in your notebook's kernel.

``%load_ext mlx_magic`` gives ``%%vision`` and ``%vision``; from Python there are
`ask`, `stream`, `map`, `panel`, `pool` and `demo_model`. Names are loaded on first use: importing
the package imports no model library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_magic.api import TextStream, ask, demo_model, stream
    from mlx_magic.api import map as map
    from mlx_magic.data.mapping.result import MapGallery, MapProgress, MapResult
    from mlx_magic.data.mapping.rows import MapImage, MapRow
    from mlx_magic.engine.result import VisionResult
    from mlx_magic.model_pool.pool import ModelPool
    from mlx_magic.notebook.panel.panel import panel

    pool: ModelPool

__version__ = "0.1.0"

__all__ = [
    "MapGallery",
    "MapImage",
    "MapProgress",
    "MapResult",
    "MapRow",
    "TextStream",
    "VisionResult",
    "__version__",
    "ask",
    "demo_model",
    "panel",
    "pool",
    "stream",
]

_MODULES = {
    "ask": "mlx_magic.api",
    "stream": "mlx_magic.api",
    "demo_model": "mlx_magic.api",
    # Not in __all__: a star import must not hide the builtin.
    "map": "mlx_magic.api",
    "MapGallery": "mlx_magic.data.mapping.result",
    "MapImage": "mlx_magic.data.mapping.rows",
    "MapProgress": "mlx_magic.data.mapping.result",
    "MapResult": "mlx_magic.data.mapping.result",
    "MapRow": "mlx_magic.data.mapping.rows",
    "panel": "mlx_magic.notebook.panel.panel",
    "TextStream": "mlx_magic.api",
    "VisionResult": "mlx_magic.engine.result",
}


def __getattr__(name: str) -> Any:
    if name == "pool":
        # Not cached: tests replace the session.
        return import_module("mlx_magic.default_session").current().pool
    if name == "_places":
        return import_module("mlx_magic.data.places.reading")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'mlx_magic' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def load_ipython_extension(ipython: Any) -> None:
    """Register the magics; called by ``%load_ext mlx_magic``."""
    import_module("mlx_magic.notebook.extension").load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Remove the magics; called by ``%unload_ext mlx_magic``. Models stay loaded."""
    import_module("mlx_magic.notebook.extension").unload(ipython)
