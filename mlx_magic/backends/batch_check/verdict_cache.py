"""Weights that passed the comparison of batched and single rows, stored across kernels."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import sys
import tempfile
from functools import cached_property
from importlib import resources
from pathlib import Path

from mlx_magic import user_folders
from mlx_magic.backends.device import platform as device_platform
from mlx_magic.models.checkpoints import batch_support
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

NAME = "together.json"
MOST = 1000
"""Maximum number of entries; the oldest are dropped first."""

_VERSIONS = ("mlx-magic", "mlx", "mlx-vlm", "mlx-lm", "transformers")


def default_path() -> Path | None:
    """Return the path of the file; None if the user has no cache folder."""
    folder = user_folders.cache()
    return None if folder is None else folder / NAME


class VerdictCache:
    """Whether the weights of one checkpoint have passed the comparison on this machine.

    Errors of the file are ignored: the weights are then compared again.

    Parameters
    ----------
    checkpoint : Checkpoint
    path : Path, optional
        Used instead of `default_path`.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path | None = None) -> None:
        self._checkpoint = checkpoint
        self._path = path

    @cached_property
    def _key(self) -> str:
        return fingerprint(self._checkpoint)

    @property
    def known(self) -> bool:
        """Whether the weights have passed."""
        with contextlib.suppress(OSError):
            return self._key in self._read()
        return False

    def keep(self) -> None:
        """Store that the weights have passed."""
        path = self._path or default_path()
        if path is None:
            return
        with contextlib.suppress(OSError, ValueError):
            path.parent.mkdir(parents=True, exist_ok=True)
            keys = [*(key for key in self._read() if key != self._key), self._key][-MOST:]
            # Atomic: another kernel reads the old file or the new one.
            with tempfile.NamedTemporaryFile(
                "w", dir=path.parent, prefix=f".{NAME}.", delete=False, encoding="utf-8"
            ) as file:
                json.dump(keys, file)
            Path(file.name).replace(path)

    def _read(self) -> list[str]:
        try:
            path = self._path or default_path()
            # A larger file was not written by this class.
            if path is None or not path.is_file() or path.stat().st_size > 200 * MOST:
                return []
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return []
        return [key for key in held if isinstance(key, str)] if isinstance(held, list) else []


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a key that changes with the weights, the libraries and the device."""
    folders = [checkpoint.path, *([checkpoint.adapter.path] if checkpoint.adapter else [])]
    files = sorted(file for f in folders for file in f.glob("*") if _matters(file))
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    versions = [_version(name) for name in _VERSIONS]
    table = resources.files(batch_support.__package__).joinpath(batch_support.TABLE).read_bytes()
    shown = hashlib.sha256(table).hexdigest()
    held = [stats, versions, shown, device_platform.describe_device(), sys.platform]
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()


def _matters(file: Path) -> bool:
    return file.suffix in (".safetensors", ".json") and file.is_file()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
