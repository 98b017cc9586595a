"""Fetching a repository of the Hub: small files first, judged before any weights come."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mlx_magic.errors import DownloadError, MlxMagicError
from mlx_magic.inference.cancel import Cancelled, CancelToken
from mlx_magic.inference.checkpoint import inspect_config, is_offline, kind_of

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
        Files that were complete stay in the cache, and are not fetched again.
    CheckpointError, UnsupportedModelError, UntrustedCodeError
        Before any weights are fetched.
    DownloadError
        Offline, missing, gated, refused, cut off or no room on the disk.
    """
    cancel.checkpoint()
    if is_offline():
        raise DownloadError(
            f"{repo_id} has to be downloaded, and downloads are off: unset HF_HUB_OFFLINE.",
            model=repo_id,
        )
    from huggingface_hub import HfApi

    with _translated(repo_id, cancel):
        info = HfApi(endpoint=endpoint).model_info(
            repo_id, revision=revision, files_metadata=True, timeout=30
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        fetch = _Fetch(repo_id, revision, cache, endpoint, cancel, progress)
        small = _matching(sizes, _SMALL + (_CODE if trust_remote_code else ()))
        if "config.json" not in sizes:
            raise DownloadError(
                f"{repo_id} has no config.json: it is no model that MLX can load.", model=repo_id
            )
        fetch.total = sum(sizes[name] for name in small)
        folder = fetch.files(small)
        # Large files follow only when the small ones are all right.
        config, _ = inspect_config(folder, repo_id, trust_remote_code=trust_remote_code)
        weights = _matching(sizes, _WEIGHTS[kind_of(config)])
        if not weights:
            raise DownloadError(
                f"{repo_id} has no safetensors weights: choose an MLX or safetensors version.",
                model=repo_id,
            )
        absent = [name for name in weights if not (folder / name).exists()]
        fetch.done = fetch.total = sum(sizes[name] for name in {*small, *weights} - {*absent})
        fetch.total += sum(sizes[name] for name in absent)
        _require_room(fetch.total - fetch.done, folder, repo_id)
        return fetch.files([*small, *weights])


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
        self._cancel, self._progress = cancel, progress
        self._lock = threading.Lock()

    def files(self, names: list[str]) -> Path:
        """Fetch those of the files that are not in the cache."""
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


def _bar_class(fetch: _Fetch) -> type[Any]:
    """Make a progress bar that draws nothing: it counts bytes and is a cancellation point."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Of the client's bars one counts bytes on disk. The others count files, or the
            # same bytes on the wire.
            text = str(kwargs.get("desc") or "")
            self._counts = kwargs.get("unit") == "B" and text.startswith(
                ("Reconstructing", "Downloading (incomplete")
            )
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts:
                fetch.advance(int(n or 0))
            else:
                fetch.look()

    return Bar


@contextmanager
def _translated(repo_id: str, cancel: CancelToken) -> Iterator[None]:
    """Turn what the Hub's client raises into one line of ours."""
    try:
        yield
    except (MlxMagicError, Cancelled):
        raise
    except Exception as error:
        # hf_xet wraps what a progress bar raises.
        if cancel.requested:
            raise Cancelled from error
        raise DownloadError(f"{repo_id} {_reason(error)}", model=repo_id) from error


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    error = _cause(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "is gated: accept its terms on its page of the Hub, then run `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return "has no such revision on the Hub: leave the revision out, or check its name."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "is not on the Hub, or is private: check its name, or run `hf auth login` "
            "if it is yours."
        )
    if status in (401, 403):
        return (
            f"was refused by the Hub (HTTP {status}): run `hf auth login` with an account that may."
        )
    if status == 429:
        return "was put off by the Hub (HTTP 429, too many requests): try again in some minutes."
    if status is not None and status >= 500:
        return f"could not be fetched, the Hub has a problem (HTTP {status}): try again later."
    if status is not None:
        return f"could not be fetched (HTTP {status}): check its name, or try again later."
    if isinstance(error, errors.HFValidationError):
        return "is no valid repository id: write it as organisation/name."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "does not fit on the disk: make room, or set HF_HOME to a larger one."
    if isinstance(error, PermissionError):
        return f"cannot be written to the cache ({error.filename}): check its permissions."
    text = " ".join(str(error).split()) or type(error).__name__
    return (
        f"could not be fetched: the Hub is out of reach or the connection broke "
        f"({type(error).__name__}: {text[:160]}): check the network and try again; what is "
        "complete is not fetched twice."
    )


def _cause(error: Exception) -> Exception:
    """Return what the Hub answered, where the client only says that a file is not here."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, Exception) and getattr(found, "response", None) is not None:
            return found
        found = found.__cause__
    return error


def _matching(names: dict[str, int], patterns: tuple[str, ...]) -> list[str]:
    return [
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in patterns)
        and not name.endswith("consolidated.safetensors")
    ]


def _require_room(needed: int, folder: Path, repo_id: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{repo_id} needs {needed / 1e9:.1f} GB more on the disk, and {free / 1e9:.1f} GB are "
            "free: make room, or set HF_HOME to a larger one.",
            model=repo_id,
        )
