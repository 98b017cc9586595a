"""From a name to a checkpoint that is on this disk, fetched first where that is needed."""

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
        Takes the progress of a download, and may cancel it.
    names : Names
    loaded : callable
        Takes a folder; returns the checkpoint of the model that was loaded from it.
    trusted : bool
        Whether the checkpoint's own code may be fetched, too.
    adapter : str, optional
        Folder of a LoRA adapter, instead of the one that the name stands for.

    Raises
    ------
    Cancelled
    ModelError
        There is no such model or adapter, or it cannot be used.
    """
    adapter = adapter or names.adapter(name)
    if adapter is not None:
        # Before gigabytes are fetched for it.
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
        There is no such model, which may be for the person's file of aliases; or it cannot
        be used.
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
    """Say what a model is, for a person, without loading it.

    Raises
    ------
    ModelError
        There is no such model, or its checkpoint cannot be used.
    """
    found = resolve(name, names)
    if isinstance(found, RemoteCheckpoint):
        return "will be downloaded when it is first used"
    return f"{found.kind}, {found.model_type}"
