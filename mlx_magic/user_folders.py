"""The user's folders: home, settings and caches."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CONFIG = "MLX_MAGIC_CONFIG"
CACHE = "MLX_MAGIC_CACHE"


def expanded(text: str | os.PathLike[str]) -> Path:
    """Expand ``~``; unchanged without a home folder, or for the ``~name`` of an unknown user.

    `Path.expanduser` raises RuntimeError in these cases, and ValueError for a zero byte.
    """
    try:
        return Path(os.path.expanduser(text))  # noqa: PTH111
    except ValueError:
        return Path(text)


def absolute(text: str | os.PathLike[str]) -> Path:
    """Expand ``~``, and make the path absolute if there is a working directory."""
    path = expanded(text)
    try:
        return path.absolute()
    except OSError:
        return path


def cwd() -> Path:
    """Return the working directory; ``.`` if it was deleted (then no file is found in it)."""
    try:
        return Path.cwd()
    except OSError:
        return Path()


def config() -> Path | None:
    """Return the settings folder: $MLX_MAGIC_CONFIG, else ~/.config/mlx-magic (XDG).

    None without a home folder; otherwise settings would be written to the working directory.
    """
    return _folder(CONFIG, os.environ.get("XDG_CONFIG_HOME") or "~/.config")


def cache() -> Path | None:
    """Return the cache folder: $MLX_MAGIC_CACHE, else the system's; None without a home."""
    system = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return _folder(CACHE, os.environ.get("XDG_CACHE_HOME") or system)


def _folder(variable: str, base: str) -> Path | None:
    own = os.environ.get(variable)
    path = expanded(own) if own else expanded(base) / "mlx-magic"
    return None if path.parts[:1] and path.parts[0].startswith("~") else path
