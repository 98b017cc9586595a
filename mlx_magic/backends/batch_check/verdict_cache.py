"""Weights that passed the comparison of batched and single rows, stored across kernels.

Models are known by the signature of their language model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from mlx_magic import user_folders
from mlx_magic.backends.batching.kv_cache import leaf_caches
from mlx_magic.backends.device import platform as device_platform
from mlx_magic.models.checkpoints import batch_support
from mlx_magic.models.checkpoints.batch_support import Signature, text_part, traits
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


# MLX's own layers and adapters compute each row by itself, and so do this package's subclasses.
_PLAIN = ("mlx.nn.", "mlx_magic.")
_ADAPTERS = (".tuner.", ".trainer.")
_HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads")


def signature(library: str, language_model: Any, config: Any, caches: Sequence[Any]) -> Signature:
    """Return the properties that decide whether a model's requests can be batched.

    Parameters
    ----------
    library : {"mlx-vlm", "mlx-lm"}
    language_model : mlx.nn.Module
    config : object
        Configuration of the whole model, as the library reads it, with its defaults.
    caches : sequence
        New caches of the language model, one per layer.
    """
    return Signature(
        library,
        tuple(sorted({name for m in language_model.modules() for name in _class_name(m)})),
        tuple(sorted({type(cache).__name__ for cache in leaf_caches(list(caches))})),
        traits(_language_config(language_model, config)),
    )


def _class_name(module: Any) -> Iterator[str]:
    cls = type(module)
    name = f"{cls.__module__}.{cls.__qualname__}"
    rotary = "rope" in cls.__name__.lower()
    if any(part in name for part in _ADAPTERS) or (name.startswith(_PLAIN) and not rotary):
        return
    # A quantized layer treats rows as the plain one does.
    yield name.replace("Quantized", "")


def _language_config(language_model: Any, config: Any) -> Mapping[str, Any]:
    """Return the configuration that has the numbers of heads, if there is one."""
    inner = getattr(language_model, "model", None)
    candidates = [
        getattr(owner, key, None)
        for owner in (language_model, inner)
        for key in ("args", "config")
        if owner is not None
    ]
    plain = [text_part(_plain(each)) for each in (*candidates, config) if each is not None]
    with_heads = (each for each in plain if any(key in each for key in _HEADS))
    return next(with_heads, plain[0] if plain else {})


def _plain(config: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        held = dict(config)
    elif dataclasses.is_dataclass(config):
        held = {f.name: getattr(config, f.name, None) for f in dataclasses.fields(config)}
        held.update(vars(config))
    else:
        held = dict(vars(config)) if hasattr(config, "__dict__") else {}
    return {key: _plain(value) if _is_part(value) else value for key, value in held.items()}


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )
