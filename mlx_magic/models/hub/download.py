"""Downloads a repository of the Hub: small files first, which are checked before any weights.

The listing names a commit, and all files are requested of that commit: a repository that changes
during the download is downloaded as it was before.
"""

from __future__ import annotations

import errno
import glob
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import DownloadError, MlxMagicError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import remote_code
from mlx_magic.models.checkpoints.architectures import Kind
from mlx_magic.models.checkpoints.checkpoint import inspect_config, is_offline, kind_of
from mlx_magic.models.checkpoints.files import INDEX, is_complete, read_object
from mlx_magic.models.hub import listing as hub_listing
from mlx_magic.models.hub import upstream
from mlx_magic.models.hub.listing import ListedFile, Listing
from mlx_magic.models.hub.resumable import (
    RemoteFile,
    damaged,
    fetch,
    find,
    link,
    matches_hash,
    run_parallel,
    write_ref,
)
from mlx_magic.user_folders import expanded

# Files that mlx-vlm and mlx-lm read. Python files are fetched only with permission to run them.
_SMALL = ("*.json", "*.jsonl", "*.model", "*.tiktoken", "*.txt", "*.jinja")
_WEIGHTS = {"vision": ("*.safetensors",), "text": ("model*.safetensors",)}
_CODE = ("*.py",)
_MAIN = "main"

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
    """Download a model's files into the Hub's cache. Blocks: not for the inference thread.

    Parameters
    ----------
    repo_id : str
        ``"organization/name"``.
    cancel : CancelToken
        Checked with every piece that arrives.
    progress : callable
        Called with downloaded and total bytes; from several threads, but not concurrently.
    trust_remote_code : bool
        Whether the user allowed the repository's own code.
    revision : str, optional
        Branch, tag or commit; the main branch if left out.
    cache, endpoint : Path, str, optional
        Replace the Hub client's defaults.

    Returns
    -------
    Path
        The checkpoint's folder in the cache.

    Raises
    ------
    Cancelled
        The downloaded part is kept, and the next download resumes from it.
    CheckpointError, UnsupportedModelError, UntrustedCodeError
        Before any weights are downloaded.
    DownloadError
        Offline, missing, gated, refused, interrupted, damaged or the disk is full.
    """
    cancel.checkpoint()
    if is_offline():
        raise DownloadError(
            f"{repo_id} has to be downloaded, and downloads are off: unset HF_HUB_OFFLINE.",
            model=repo_id,
        )
    with translated(repo_id, cancel):
        listing = hub_listing.read(
            repo_id, revision=revision, endpoint=endpoint, check_cancel=cancel.checkpoint
        )
        require_config(listing)
        small = listing.chosen(_SMALL)
        small = [file for file in small if remote_code.limits_of(file.name) is not None]
        if trust_remote_code:
            small += listing.chosen(_CODE, folders=True)
        hub_listing.require_files(small, repo_id)
        fetching = _Fetch(listing, repository_folder(repo_id, cache), endpoint, cancel, progress)
        fetching.fetch_files(small)
        # Raises if the small files are not valid, before any weights are downloaded.
        config, _ = inspect_config(fetching.folder, repo_id, trust_remote_code=trust_remote_code)
        kind = kind_of(config)
        weights = _weights(fetching.folder, listing.chosen(_WEIGHTS[kind]), kind)
        if not weights:
            raise DownloadError(
                f"{repo_id} has no safetensors weights: choose an MLX or safetensors version.",
                model=repo_id,
            )
        fetching.write_ref(revision or _MAIN, whole=False)
        fetching.fetch_files(weights)
        fetching.write_ref(revision or _MAIN, whole=True)
        return fetching.folder


def fetch_config(repo_id: str, folder: Path, *, endpoint: str | None = None) -> tuple[Path, int]:
    """Fetch only a repository's config.json, into a separate cache.

    Parameters
    ----------
    repo_id : str
    folder : Path
        The cache.
    endpoint : str, optional

    Returns
    -------
    tuple
        The folder of config.json, and the bytes of all safetensors files according to the Hub.

    Raises
    ------
    ModelError
    """
    cancel = CancelToken()
    with translated(repo_id, cancel):
        listing = hub_listing.read(repo_id, endpoint=endpoint)
        require_config(listing)
        fetching = _Fetch(
            listing, repository_folder(repo_id, folder), endpoint, cancel, lambda done, total: None
        )
        fetching.fetch_files([listing.files["config.json"]])
    weights = (file for file in listing.files.values() if file.name.endswith(".safetensors"))
    return fetching.folder, sum(file.size or 0 for file in weights)


def require_config(listing: Listing) -> None:
    """Refuse a repository without a config.json.

    Raises
    ------
    DownloadError
    """
    if "config.json" not in listing.files:
        raise DownloadError(
            f"{listing.repo_id} has no config.json: MLX cannot load it.",
            model=listing.repo_id,
        )


def repository_folder(repo_id: str, cache: Path | None) -> Path:
    """Return a repository's folder in the Hub's cache."""
    root = upstream.cache_folder() if cache is None else cache
    return expanded(root).resolve() / f"models--{repo_id.replace('/', '--')}"


class _Fetch:
    """A download in two parts (small files, weights) with one progress.

    Attributes
    ----------
    folder : Path
        The folder of the commit's files.
    """

    def __init__(
        self,
        listing: Listing,
        repository: Path,
        endpoint: str | None,
        cancel: CancelToken,
        progress: Progress,
    ) -> None:
        self.folder = repository / "snapshots" / listing.commit
        self._total = self._done = 0
        self._listing, self._repository, self._endpoint = listing, repository, endpoint
        self._cancel, self._progress = cancel, progress
        self._lock = threading.Lock()

    def fetch_files(self, files: Sequence[ListedFile]) -> None:
        """Fetch the files that are not in the cache; incomplete ones are resumed.

        Raises
        ------
        DownloadError
            When a file does not match its hash; it is then deleted from the cache.
        """
        sizes_here = {file.name: self._size_here(file) for file in files}
        absent = [file for file in files if sizes_here[file.name] is None]
        found = self._find_remote(absent)
        remote = [file for file in found.values() if file is not None]
        too_large = [file for file in absent if found[file.name] is None]
        sizes = [size for size in sizes_here.values() if size is not None]
        self._total += (
            sum(sizes) + sum(f.size for f in remote) + sum(f.size or 0 for f in too_large)
        )
        self._done += sum(sizes) + sum(file.had for file in remote)
        if absent:
            self._repository.mkdir(parents=True, exist_ok=True)
            _require_disk_space(self._total - self._done, self._repository, self._listing.repo_id)
        if absent or any(file.limit is None for file in files):
            self._progress(self._done, self._total)
        fetch(remote, cancel=self._cancel, arrived=self.advance, bar=_bar_class(self, counts=False))
        for file in remote:
            link(file.blob, self.folder / file.name)
        for listed in too_large:
            self._fetch_with_client(listed)

    def write_ref(self, revision: str, *, whole: bool) -> None:
        """Record the commit of a revision. An incomplete one does not replace a complete one."""
        if revision == self._listing.commit:
            return
        if not whole:
            try:
                before = (self._repository / "refs" / revision).read_text().strip()
            except (OSError, ValueError):
                before = ""
            # The recorded commit is complete, and can still be used offline.
            if before and is_complete(self._repository / "snapshots" / before):
                return
        write_ref(self._repository, revision, self._listing.commit)

    def _size_here(self, file: ListedFile) -> int | None:
        """Return the size of a file that is valid in the cache; None if it is not."""
        path = self.folder / file.name
        if not path.is_file():
            return None
        digest = file.digest
        if path.is_symlink():
            name = hub_listing.digest_of(path.readlink().name)
            if digest is not None and name != digest:
                return None
            digest = digest or name
        size = path.stat().st_size
        if file.size not in (None, size):
            return None
        # Weights are not checked again: they were after their download, and it takes long.
        if file.limit is not None and digest and not matches_hash(path, digest, self.check_cancel):
            return None
        return size

    def _find_remote(self, files: Sequence[ListedFile]) -> dict[str, RemoteFile | None]:
        found: dict[str, RemoteFile | None] = {}

        def ask(listed: ListedFile, check_cancel: Callable[[], None]) -> None:
            check_cancel()
            found[listed.name] = find(
                self._listing, listed, endpoint=self._endpoint, repository=self._repository
            )

        run_parallel(files, ask, cancel=self._cancel)
        return {file.name: found[file.name] for file in files}

    def _fetch_with_client(self, file: ListedFile) -> None:
        """Let the Hub client fetch a file that `find` leaves to it."""
        from huggingface_hub import snapshot_download

        self._cancel.checkpoint()
        before = self._done
        snapshot_download(
            self._listing.repo_id,
            revision=self._listing.commit,
            allow_patterns=[glob.escape(file.name)],
            cache_dir=self._repository.parent,
            endpoint=self._endpoint,
            tqdm_class=_bar_class(self),
        )
        if self._size_here(file) is None:
            raise DownloadError(
                f"{self._listing.repo_id}: {file.name} did not arrive completely: try again.",
                model=self._listing.repo_id,
            )
        path = self.folder / file.name
        # The client compares sizes only.
        if file.digest is not None and not matches_hash(path, file.digest, self.check_cancel):
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise damaged(self._listing.repo_id, file.name)
        # Bytes that the client's bars did not count.
        self.advance(before + (file.size or 0) - self._done)

    def check_cancel(self) -> None:
        """Raise `Cancelled` if the download was cancelled."""
        self._cancel.checkpoint()

    def advance(self, count: int) -> None:
        """Count bytes; called from any of the client's threads."""
        self._cancel.checkpoint()
        with self._lock:
            self._done += count
            self._progress(self._done, self._total)


def _bar_class(fetching: _Fetch, *, counts: bool = True) -> type[Any] | None:
    """Return a progress bar class without output, which counts bytes and checks for a cancel.

    None stands for the client's own bars.
    """
    if upstream.PROGRESS.off is not None:
        return None

    tqdm: Any = upstream.PROGRESS.names.tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Only one of the client's bars counts bytes on disk. The others count files, or the
            # same bytes as network traffic.
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
                fetching.check_cancel()

    return Bar


def _weights(folder: Path, files: list[ListedFile], kind: Kind) -> list[ListedFile]:
    """Return the weight files that a library would read, without other formats or precisions."""
    files = [
        file
        for file in files
        if "/" not in file.name and not file.name.endswith("consolidated.safetensors")
    ]
    if kind == "vision" and (folder / INDEX).is_file():
        named = read_object(folder / INDEX, model=folder.name).get("weight_map")
        shards = set(named.values()) if isinstance(named, dict) else set()
        # `checkpoint.inspect` refuses an index that names none of the files.
        return [file for file in files if file.name in shards] or files
    return files


def _require_disk_space(needed: int, folder: Path, repo_id: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{repo_id} needs {needed / 1e9:.1f} GB more on the disk, and {free / 1e9:.1f} GB are "
            "free: make room, or set HF_HOME to a larger one.",
            model=repo_id,
        )


@contextmanager
def translated(repo_id: str, cancel: CancelToken) -> Iterator[None]:
    """Translate exceptions of the Hub client within this block to a `DownloadError`.

    Parameters
    ----------
    repo_id : str
    cancel : CancelToken
        Once it is cancelled, any exception is raised as `Cancelled`.

    Raises
    ------
    Cancelled, DownloadError
    """
    try:
        yield
    except (MlxMagicError, Cancelled):
        raise
    except Exception as error:
        # hf_xet wraps exceptions of a progress bar.
        if cancel.requested:
            raise Cancelled from error
        raise DownloadError(f"{repo_id} {_reason(error)}", model=repo_id) from error


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    error = _cause_with_response(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "has to be looked up on the Hub, and downloads are off: unset HF_HUB_OFFLINE."
    if isinstance(error, errors.GatedRepoError):
        return "is gated: accept its terms on its Hub page, then run `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return "has no such revision on the Hub: leave the revision out, or check its name."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "is not on the Hub, or is private: check its name, or run `hf auth login` "
            "if it is yours."
        )
    if status in (401, 403):
        return (
            f"was refused by the Hub (HTTP {status}): run `hf auth login` with an account that "
            "has access."
        )
    if status == 429:
        return (
            "was rate-limited by the Hub (HTTP 429, too many requests): try again in a few minutes."
        )
    if status is not None and status >= 500:
        return f"could not be fetched, the Hub has a problem (HTTP {status}): try again later."
    if status is not None:
        return f"could not be fetched (HTTP {status}): check its name, or try again later."
    if isinstance(error, errors.HFValidationError):
        return "is not a valid repository id: write it as organization/name."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "does not fit on the disk: make room, or set HF_HOME to a larger one."
    if isinstance(error, PermissionError):
        path = shown(str(error.filename), 200)
        return f"cannot be written to the cache ({path}): check its permissions."
    text = shown(str(error), 160) or type(error).__name__
    return (
        f"could not be fetched: the Hub is out of reach or the connection broke "
        f"({type(error).__name__}: {text}): check the network and try again; what is "
        "complete is not fetched twice."
    )


def _cause_with_response(error: Exception) -> Exception:
    """Return the cause that has the Hub's response, or the error if there is none."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, Exception) and getattr(found, "response", None) is not None:
            return found
        found = found.__cause__
    return error
