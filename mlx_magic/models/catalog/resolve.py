"""Resolves a model name to a checkpoint on the disk, which is downloaded first if needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_magic.engine.task import Task
from mlx_magic.errors import ModelNotFoundError
from mlx_magic.formatting import shown
from mlx_magic.models.catalog.aliases import Names
from mlx_magic.models.checkpoints import checkpoint
from mlx_magic.models.checkpoints import lora as adapters
from mlx_magic.models.checkpoints.checkpoint import Checkpoint, RemoteCheckpoint


def find(
    name: str,
    task: Task[Any],
    *,
    names: Names,
    loaded: Callable[[str], Checkpoint | None],
    trusted: bool = False,
    adapter: str | None = None,
) -> Checkpoint:
    """Find a model by its name; blocks while it is downloaded.

    Parameters
    ----------
    name : str
        Alias, folder or repository id.
    task : Task
        Gets the progress of a download, and may cancel it.
    names : Names
    loaded : callable
        Called with a folder; returns the checkpoint of the model that was loaded from it.
    trusted : bool
        Whether the checkpoint's own code may be downloaded, too.
    adapter : str, optional
        Folder of a LoRA adapter, instead of the alias's adapter.

    Raises
    ------
    Cancelled
    ModelError
        There is no such model or adapter, or it cannot be used.
    """
    adapter = adapter or names.adapter(name)
    if adapter is not None:
        # Checked before gigabytes of weights are downloaded for it.
        adapters.require_folder(Path(adapter), model=name)
    found = _find_base(name, task, names, loaded, trusted)
    if adapter is None:
        return found
    return found.adapted(adapters.inspect(Path(adapter), found.kind, model=name))


def _find_base(
    name: str,
    task: Task[Any],
    names: Names,
    loaded: Callable[[str], Checkpoint | None],
    trusted: bool,
) -> Checkpoint:
    known = names.known(name)
    loaded_checkpoint = loaded(known.get(name, name))
    if loaded_checkpoint is not None:
        # Reading its files again would take milliseconds of every question.
        return replace(loaded_checkpoint, name=name)
    found = resolve(name, names)
    if isinstance(found, RemoteCheckpoint):
        from mlx_magic.models.hub import download as hub_download

        task.enter("downloading", f"downloading {found.repo_id}")
        folder = hub_download.download(
            found.repo_id, cancel=task.token, progress=task.advance, trust_remote_code=trusted
        )
        found = checkpoint.inspect(folder, name)
    return found


def resolve(name: str, names: Names) -> Checkpoint | RemoteCheckpoint:
    """Find a model by its name, without a download. See `checkpoint.resolve`.

    Raises
    ------
    ModelError
        There is no such model (perhaps because of a problem in the alias file), or it cannot be
        used.
    """
    known = names.known(name)
    try:
        return checkpoint.resolve(name, aliases=known)
    except ModelNotFoundError as error:
        problem_with = names.problem_with(name)
        if name in known or not problem_with:
            raise
        raise ModelNotFoundError(
            f"There is no model {shown(repr(name))} here. It may be one of your aliases: "
            f"{problem_with} Fix that file (other models work), or name a folder or a Hub "
            "repository.",
            model=name,
        ) from error


def describe_model(name: str, names: Names) -> str:
    """Return the kind and architecture of a model for display, without loading it.

    Raises
    ------
    ModelError
        There is no such model, or its checkpoint cannot be used.
    """
    found = resolve(name, names)
    if isinstance(found, RemoteCheckpoint):
        return "will be downloaded when it is first used"
    return f"{found.kind}, {found.model_type}"
