"""The digest of a model: its weights, config, tokenizer, chat template and defaults, by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from mlx_magic.cancellation import CancelToken
from mlx_magic.data.journal.store import FileState, Journal
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

_PIECE = 4 << 20
_TEXTS = (".md", ".png", ".jpg", ".jpeg", ".gif", ".pdf", ".lock", ".log")
"""Suffixes of files that no answer depends on."""


def model_digest(checkpoint: Checkpoint, journal: Journal, cancel: CancelToken) -> str:
    """Return the digest (hex) of everything in the folders of a checkpoint and its adapter.

    Each file is read once: the journal remembers its digest by path, size, time and inode.

    Raises
    ------
    Cancelled
    OSError
        A file cannot be read.
    """
    digest = hashlib.sha256()
    folders = [("model", checkpoint.path)]
    if checkpoint.adapter is not None:
        folders.append(("adapter", checkpoint.adapter.path))
    for role, folder in folders:
        for name, path in _files(folder):
            content = _file_digest(path, journal, cancel)
            digest.update(f"{role}\0{name}\0{content}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    found = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix.lower() not in _TEXTS
    }
    for name in sorted(found):
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, found[name]


def _file_digest(path: Path, journal: Journal, cancel: CancelToken) -> str:
    # Of the file itself: the Hub's cache has links to it.
    state = FileState.of(path.resolve())
    known = journal.digest(state, "content")
    if known is not None:
        return known
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            cancel.checkpoint()
            digest.update(piece)
    if FileState.of(path.resolve()) == state:
        journal.remember(state, "content", digest.hexdigest())
    return digest.hexdigest()
