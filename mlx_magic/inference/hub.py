"""Fetching a repository of the Hub: small files first, judged before any weights come."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mlx_magic.errors import CheckpointError, DownloadError
from mlx_magic.inference import trust
from mlx_magic.inference.architectures import Kind
from mlx_magic.inference.cancel import CancelToken
from mlx_magic.inference.checkpoint import inspect_config, is_offline, kind_of
from mlx_magic.inference.checkpoint_files import INDEX, read_object
from mlx_magic.inference.hub_errors import translated
from mlx_magic.inference.hub_files import damaged, fetch, find, is_whole
from mlx_magic.inference.shown import shown

# What mlx-vlm and mlx-lm read. Python files come only with permission to run them.
_SMALL = ("*.json", "*.jsonl", "*.model", "*.tiktoken", "*.txt", "*.jinja")
_WEIGHTS = {"vision": ("*.safetensors",), "text": ("model*.safetensors",)}
_CODE = ("*.py",)

Progress = Callable[[int, int], None]


def download(
    repo_id: str,
    *,
    cancel: CancelToken,
    progress: Progress,
    trust_remote_code: bool = False,
    revision: str | None = None,
    cache: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """Fetch what a model needs into the Hub's cache; blocks, so never on the inference thread.

    Parameters
    ----------
    repo_id : str
        ``"organisation/name"``.
    cancel : CancelToken
        Looked at with every piece that arrives.
    progress : callable
        Takes bytes fetched and bytes in all; called from several threads, one at a time.
    trust_remote_code : bool
        Whether the person allowed this repository's own code.
    revision : str, optional
        Branch, tag or commit; the main branch if left out.
    cache, endpoint : Path, str, optional
        Instead of the Hub client's own defaults.

    Returns
    -------
    Path
        The checkpoint's folder in the cache.

    Raises
    ------
    Cancelled
        What has arrived stays, and the next download goes on from there.
    CheckpointError, UnsupportedModelError, UntrustedCodeError
        Before any weights are fetched.
    DownloadError
        Offline, missing, gated, refused, cut off, damaged or no room on the disk.
    """
    cancel.checkpoint()
    if is_offline():
        raise DownloadError(
            f"{repo_id} has to be downloaded, and downloads are off: unset HF_HUB_OFFLINE.",
            model=repo_id,
        )
    from huggingface_hub import HfApi

    with translated(repo_id, cancel):
        info = HfApi(endpoint=endpoint).model_info(
            repo_id, revision=revision, files_metadata=True, timeout=30
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        if "config.json" not in sizes:
            raise DownloadError(
                f"{repo_id} has no config.json: it is no model that MLX can load.", model=repo_id
            )
        _require_sizes(sizes, repo_id)
        fetching = _Fetch(repo_id, revision, cache, endpoint, cancel, progress)
        small = _matching(sizes, _SMALL + (_CODE if trust_remote_code else ()))
        fetching.total = sum(sizes[name] for name in small)
        folder = fetching.small(small)
        # Large files follow only when the small ones are all right.
        config, _ = inspect_config(folder, repo_id, trust_remote_code=trust_remote_code)
        kind = kind_of(config)
        weights = _weights(folder, _matching(sizes, _WEIGHTS[kind]), kind)
        if not weights:
            raise DownloadError(
                f"{repo_id} has no safetensors weights: choose an MLX or safetensors version.",
                model=repo_id,
            )
        absent = [name for name in weights if not (folder / name).exists()]
        fetching.total = sum(sizes[name] for name in {*small, *weights})
        fetching.done = fetching.total - sum(sizes[name] for name in absent)
        fetching.weights(absent, folder.parent.parent, info.sha)
        return fetching.linked([*small, *weights])


class _Fetch:
    """A download in two parts that is counted as one."""

    def __init__(
        self,
        repo_id: str,
        revision: str | None,
        cache: Path | None,
        endpoint: str | None,
        cancel: CancelToken,
        progress: Progress,
    ) -> None:
        self.total = self.done = 0
        self._place: dict[str, Any] = {"revision": revision, "cache_dir": cache}
        self._place |= {"repo_id": repo_id, "endpoint": endpoint}
        self._repo_id = repo_id
        self._cancel, self._progress = cancel, progress
        self._lock = threading.Lock()

    def small(self, names: list[str]) -> Path:
        """Fetch those of the files that are not in the cache; return their folder there.

        Raises
        ------
        DownloadError
            When one is not what its hash says; it is gone from the cache then.
        """
        folder = self.linked(names)
        for path in (folder / name for name in names):
            if not path.is_symlink():
                continue  # where links cannot be made, no name tells what the content should be
            blob = folder.parent.parent / "blobs" / path.readlink().name
            if not is_whole(blob, blob.name, self.look):
                path.unlink()
                blob.unlink()
                raise damaged(self._repo_id, path.name)
        return folder

    def weights(self, names: list[str], repository: Path, commit: str | None) -> None:
        """Bring files into the cache, going on where an earlier download was stopped."""
        found = [
            find(
                self._repo_id,
                name,
                commit=commit,
                endpoint=self._place["endpoint"],
                repository=repository,
            )
            for name in names
        ]
        files = [file for file in found if file is not None]
        self.done += sum(file.had for file in files)
        _require_room(self.total - self.done, repository, self._repo_id)
        self._progress(self.done, self.total)
        fetch(files, cancel=self._cancel, arrived=self.advance, bar=_bar_class(self, counts=False))

    def linked(self, names: list[str]) -> Path:
        """Let the client put the files where it finds them, and fetch what is not there."""
        from huggingface_hub import snapshot_download

        self._cancel.checkpoint()
        return Path(
            snapshot_download(allow_patterns=names, tqdm_class=_bar_class(self), **self._place)
        )

    def look(self) -> None:
        """Stop here if somebody asked."""
        self._cancel.checkpoint()

    def advance(self, count: int) -> None:
        """Count bytes; from any of the client's threads."""
        self._cancel.checkpoint()
        with self._lock:
            self.done += count
            self._progress(self.done, self.total)


def _bar_class(fetching: _Fetch, *, counts: bool = True) -> type[Any]:
    """Make a progress bar that draws nothing: it counts bytes and is a cancellation point."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Of the client's bars one counts bytes on disk. The others count files, or the
            # same bytes on the wire.
            text = str(kwargs.get("desc") or "")
            self._counts = (
                counts
                and kwargs.get("unit") == "B"
                and text.startswith(("Reconstructing", "Downloading (incomplete"))
            )
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts:
                fetching.advance(int(n or 0))
            else:
                fetching.look()

    return Bar


def _matching(names: dict[str, int], patterns: tuple[str, ...]) -> list[str]:
    return [
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in patterns)
        and not name.endswith("consolidated.safetensors")
    ]


def _weights(folder: Path, names: list[str], kind: Kind) -> list[str]:
    """Leave out the weights that no library would read: other formats, other precisions."""
    names = [name for name in names if "/" not in name]
    if kind == "vision" and (folder / INDEX).is_file():
        named = read_object(folder / INDEX, model=folder.name).get("weight_map")
        shards = set(named.values()) if isinstance(named, dict) else set()
        # An index that names none of them is for `checkpoint.inspect` to refuse.
        return [name for name in names if name in shards] or names
    return names


def _require_sizes(sizes: dict[str, int], repo_id: str) -> None:
    """Refuse files before they are fetched that would be refused after it."""
    for name in _matching(sizes, _SMALL):
        limits = trust.limits_of(name)
        if limits is not None and sizes[name] > limits.nbytes:
            raise CheckpointError(
                f"{repo_id}: {shown(name)} is too large ({sizes[name] / 1e6:.1f} MB, of at most "
                f"{limits.nbytes / 1e6:.1f} MB): choose another model.",
                model=repo_id,
            )


def _require_room(needed: int, folder: Path, repo_id: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{repo_id} needs {needed / 1e9:.1f} GB more on the disk, and {free / 1e9:.1f} GB are "
            "free: make room, or set HF_HOME to a larger one.",
            model=repo_id,
        )
