"""Models on this disk: the bundled one, aliases, the user's model folders, the Hub's cache."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_magic import demo
from mlx_magic.engine.request import DEMO
from mlx_magic.errors import ModelError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import checkpoint, files, strict_json
from mlx_magic.models.checkpoints.strict_json import JsonLimits, SlowToReadError
from mlx_magic.models.hub import upstream
from mlx_magic.models.hub.resumable import PART
from mlx_magic.user_folders import expanded

PATIENCE = 1.0
"""Seconds after which a list reads the files of no further model."""

_REFERENCE = JsonLimits(1000, 0)
_REPOSITORY = re.compile(r"models--(\w[\w.-]{0,95}?)--(\w[\w.-]{0,95})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelOnDisk:
    """A model that could be loaded without a download, or the reason why not.

    Attributes
    ----------
    name : str
        Alias, name in a model folder, or repository id: the name that loads it. Untrusted text
        that must be made printable for display.
    path : Path
        Its folder.
    kind : {"vision", "text", ""}
        Empty where its config.json does not tell.
    model_type : str
        Architecture, from config.json; may be empty.
    quantization : str or None
    nbytes : int
        Bytes of the weights on disk; 0 is unknown.
    needed : int
        Bytes of the weights in memory; 0 is unknown.
    problem : str
        Why it cannot be used as it is, in one line; empty if it can.
    partly : bool
        Whether the problem is an incomplete download: loading the model fetches the rest.
    """

    name: str
    path: Path
    kind: str = ""
    model_type: str = ""
    quantization: str | None = None
    nbytes: int = 0
    needed: int = 0
    problem: str = ""
    partly: bool = False


def models_on_disk(
    aliases: Mapping[str, str],
    *,
    float32: Callable[[int], bool],
    folders: Sequence[Path] = (),
    cache: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[ModelOnDisk]:
    """List models, without using the network, importing a library or reading weights.

    Takes some milliseconds for each model, more if it has many weight files: do not call it on
    an event loop.

    Parameters
    ----------
    aliases : mapping
        Alias to folder or repository id; those of folders are listed.
    float32 : callable
        Whether weights are unpacked here. See `checkpoint.bytes_in_memory`.
    folders : sequence of Path
        The user's model folders, with ``name/config.json`` or
        ``organization/name/config.json``.
    cache : Path, optional
        The Hub's cache folder, instead of its default.
    clock : callable
        Seconds, monotonic.

    Returns
    -------
    list of ModelOnDisk
        The bundled model, then aliases, then models in the folders, then repositories in the
        cache that have a config.json; each group is sorted by name. A model is listed once.
        Models that are reached after `PATIENCE` have only their name and path.
    """
    ends = clock() + PATIENCE

    def describe(name: str, folder: Path) -> ModelOnDisk:
        return _describe(name, folder, float32) if clock() < ends else ModelOnDisk(name, folder)

    found = [_describe(DEMO, demo.folder(), float32)]
    for name, folder in sorted(_from_aliases(aliases)):
        found.append(describe(name, folder))
    listed = {_resolved(model.path) for model in found}
    cached = sorted(_from_cache(cache))
    for name, folder in [*_from_model_folders(folders), *cached]:
        if _resolved(folder) not in listed:
            listed.add(_resolved(folder))
            # An alias of this name takes precedence, so the model is listed by its path.
            model = describe(str(folder) if name in aliases else name, folder)
            stopped = bool(model.problem) and (name, folder) in cached and _was_stopped(folder)
            found.append(replace(model, partly=stopped))
    return found


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises on a loop of links


def _was_stopped(folder: Path) -> bool:
    """Return whether the download of a repository in the cache was stopped within the weights."""
    blobs = folder.parent.parent / "blobs"
    begun = (folder / files.INDEX).is_file() or any(blobs.glob(f"*{PART}"))
    return begun and not files.is_complete(folder)


def names_on_disk(folders: Sequence[Path] = (), *, cache: Path | None = None) -> list[str]:
    """Return the names of models in the folders and in the Hub's cache, without opening files.

    Parameters
    ----------
    folders, cache
        See `models_on_disk`.
    """
    return [name for name, _ in [*_from_model_folders(folders), *sorted(_from_cache(cache))]]


def _describe(name: str, folder: Path, float32: Callable[[int], bool]) -> ModelOnDisk:
    """Describe a model. Any error becomes its `problem`, so that the others are listed."""
    try:
        return _inspected(name, folder, float32)
    except Exception as error:
        what = f"its files cannot be understood ({type(error).__name__})"
        return ModelOnDisk(name, folder, problem=what)


def _inspected(name: str, folder: Path, float32: Callable[[int], bool]) -> ModelOnDisk:
    try:
        found = checkpoint.inspect(folder, name, quick=True)
    except SlowToReadError:
        return ModelOnDisk(name, folder)
    except ModelError as error:
        return _unusable(name, folder, error)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return ModelOnDisk(name, folder, problem=f"its folder cannot be read ({reason})")
    problem = ""
    try:
        found.require_trust(False)
    except ModelError as error:
        problem = _without_name(error, name)
    return ModelOnDisk(
        name=name,
        path=folder,
        kind=found.kind,
        model_type=found.model_type,
        quantization=found.quantization,
        nbytes=found.weight_bytes,
        needed=checkpoint.bytes_in_memory(found, float32=float32),
        problem=problem,
    )


def _unusable(name: str, folder: Path, error: ModelError) -> ModelOnDisk:
    """Describe a checkpoint that `inspect` refused, as far as possible."""
    problem = _without_name(error, name)
    try:
        config = files.read_config(folder, model=name)
    except ModelError:
        return ModelOnDisk(name, folder, problem=problem)
    return ModelOnDisk(
        name=name,
        path=folder,
        kind=checkpoint.kind_of(config),
        model_type=config["model_type"],
        quantization=checkpoint.quantization_of(config),
        problem=problem,
    )


def _without_name(error: ModelError, name: str) -> str:
    """Return the message without the model's name at its start."""
    prefix = str(ModelError(name, model=name))  # on one line, as in the message
    return shown(str(error).removeprefix(prefix).removeprefix(":"), 1000)


def _from_aliases(aliases: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    for name, target in aliases.items():
        folder = expanded(target)
        # A missing absolute folder is listed with its problem; other targets are repositories.
        if name != DEMO and (folder.is_absolute() or os.path.isdir(folder)):  # noqa: PTH112
            yield name, folder


def _from_model_folders(folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return the models in the user's model folders by name; of two with one name, the first."""
    found: dict[str, Path] = {}
    for root in folders:
        for pattern in ("*/config.json", "*/*/config.json"):
            for config in _globbed(root, pattern):
                found.setdefault(config.parent.relative_to(root).as_posix(), config.parent)
    return sorted(found.items())


def _globbed(root: Path, pattern: str) -> list[Path]:
    try:
        return list(root.glob(pattern))
    except (OSError, RuntimeError):  # no permission, a loop of links
        return []


def _from_cache(cache: Path | None) -> Iterator[tuple[str, Path]]:
    """Yield repositories with a config.json, as `checkpoint.resolve` would find them.

    The Hub client's own look-up is not used: its import takes a quarter of a second, at the
    first Tab.
    """
    root = upstream.cache_folder() if cache is None else cache
    for folder in root.glob("models--*"):
        named = _REPOSITORY.fullmatch(folder.name)
        # Repository ids have no double dash or dot: such a folder name is ambiguous.
        if named is None or any("--" in part or ".." in part for part in named.groups()):
            continue
        with contextlib.suppress(OSError, ValueError):
            commit = strict_json.text(folder / "refs" / "main", _REFERENCE).strip()
            if (folder / "snapshots" / commit / "config.json").is_file():
                yield "/".join(named.groups()), folder / "snapshots" / commit
