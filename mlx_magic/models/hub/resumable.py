"""Downloads files into the Hub's cache: resumable, and verified by their hash.

The Hub client restarts an interrupted file, and checks only its size. So the bytes are written to
a separate partial file in the cache; once its hash matches, it is renamed to the blob that the
client looks for.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import DownloadError
from mlx_magic.formatting import shown
from mlx_magic.models.hub import upstream
from mlx_magic.models.hub.listing import ListedFile, Listing, digest_of

PART = ".mlx-magic.part"
"""Suffix of partial files."""

MOST_PARALLEL = 4
"""Maximum number of parallel downloads."""

_PIECE = 1 << 20
_CHECKED_AGAIN = 64 * 2**20  # bytes; larger files take long, and were checked after their download
# The partial file is deleted then: a full disk would harm other programs.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

Arrived = Callable[[int], None]
"""Called with a number of bytes; negative if they have to be downloaded again."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository, and its location in the cache.

    Attributes
    ----------
    repo_id, name : str
    url : str
    size : int
        Bytes.
    etag : str
        Hash that identifies the content on the Hub and in the cache: SHA-256 of a large file,
        git's hash of others. It has only hexadecimal digits, since it is part of paths.
    repository : Path
        The repository's folder in the cache.
    had : int
        Bytes of the file that were on the disk when this object was created.
    """

    repo_id: str
    name: str
    url: str
    size: int
    etag: str
    repository: Path
    had: int = 0

    @property
    def blob(self) -> Path:
        """Path of the complete file."""
        return self.repository / "blobs" / self.etag

    @property
    def part(self) -> Path:
        """Path of the partial file."""
        return self.repository / "blobs" / f"{self.etag}{PART}"

    @property
    def lock(self) -> Path:
        """Path of the lock file that the Hub client uses, in any process."""
        return self.repository.parent / ".locks" / self.repository.name / f"{self.etag}.lock"

    @property
    def arrived(self) -> int:
        """Bytes of the file that are on the disk now."""
        if self.blob.exists():
            return self.size
        with contextlib.suppress(OSError):
            return min(self.part.stat().st_size, self.size)
        return 0


def find(
    listing: Listing, listed: ListedFile, *, endpoint: str | None, repository: Path
) -> RemoteFile | None:
    """Query the Hub for a file's size and hash; None if only the Hub client can download it.

    That is so for very large files, and for all if downloads cannot be resumed
    (`upstream.RESUMABLE`).

    Parameters
    ----------
    listing : Listing
        The listing of the file's commit.
    listed : ListedFile
    endpoint : str or None
        None is the Hub client's endpoint.
    repository : Path
        The repository's folder in the cache.

    Raises
    ------
    DownloadError
        When the response contradicts the listing.
    CheckpointError
        When the file is too large.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    repo_id, name = listing.repo_id, listed.name
    url = hf_hub_url(repo_id, name, revision=listing.commit, endpoint=endpoint)
    found = get_hf_file_metadata(url, endpoint=endpoint)
    if found.commit_hash not in (None, listing.commit):
        raise _contradicted(listing, name, "is of another commit")
    digest = digest_of(found.etag)
    if listed.digest is not None and digest not in (None, listed.digest):
        raise _contradicted(listing, name, "has another hash")
    digest = listed.digest or digest
    if digest is None:
        raise _contradicted(listing, name, "comes without a hash")
    size = listed.size if found.size is None else found.size
    if size is None or size < 0:
        raise _contradicted(listing, name, "comes without a size")
    if listed.size is not None and size > listed.size:
        raise _contradicted(listing, name, "is larger")
    listed.require_size(size, repo_id)
    if upstream.RESUMABLE.off is not None:
        return None
    if size > upstream.most_in_one_request():
        return None
    file = RemoteFile(repo_id, name, url, size, digest, repository)
    return replace(file, had=file.arrived)


def run_parallel(
    items: Sequence[_T], work: Callable[[_T, Callable[[], None]], None], *, cancel: CancelToken
) -> None:
    """Call `work` with each item, on up to `MOST_PARALLEL` threads.

    Parameters
    ----------
    items : sequence
    work : callable
        Called with an item and a function to call regularly, which raises when it must stop.
    cancel : CancelToken

    Raises
    ------
    Cancelled
    Exception
        The first exception; the other calls are then stopped.
    """
    waiting: queue.SimpleQueue[_T] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    failures: list[BaseException] = []

    def check_cancel() -> None:
        cancel.checkpoint()
        if failures:
            raise Cancelled

    def run() -> None:
        try:
            with contextlib.suppress(queue.Empty):
                while not failures:
                    work(waiting.get_nowait(), check_cancel)
        except BaseException as error:
            failures.append(error)

    # Daemon threads: the exit of the process would wait for an executor's threads.
    threads = [
        threading.Thread(target=run, name="mlx-magic-download", daemon=True)
        for _ in items[:MOST_PARALLEL]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def fetch(
    files: Sequence[RemoteFile], *, cancel: CancelToken, arrived: Arrived, bar: type[Any] | None
) -> None:
    """Download files in parallel, resuming partial ones.

    Parameters
    ----------
    files : sequence of RemoteFile
    cancel : CancelToken
    arrived : callable
        Called with the bytes that arrive beyond `RemoteFile.had`, from several threads.
    bar : type or None
        A progress bar class without output; None for the Hub client's own.

    Raises
    ------
    Cancelled
    DownloadError
        When a file does not match its hash.
    Exception
        The first exception of the Hub client; the other downloads are then stopped.
    """
    run_parallel(
        files, lambda file, check_cancel: _fetch(file, check_cancel, arrived, bar), cancel=cancel
    )


def link(blob: Path, pointer: Path) -> None:
    """Link a blob of the cache to the path of its commit and name."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.parent / f".{secrets.token_hex(8)}.link"
    try:
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        blob.replace(pointer)  # as the client does where there are no links
        return
    temporary.replace(pointer)


def write_ref(repository: Path, revision: str, commit: str) -> None:
    """Record the commit of a branch or tag in the cache, for offline use."""
    path = repository / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.ref"
    temporary.write_text(commit)
    temporary.replace(path)


def _fetch(
    file: RemoteFile, check_cancel: Callable[[], None], arrived: Arrived, bar: type[Any] | None
) -> None:
    names = upstream.RESUMABLE.names
    with _locked(file, check_cancel):
        if _is_damaged(file, check_cancel):
            file.blob.unlink()
        # Another process may have downloaded it in the meantime.
        present = file.arrived
        arrived(present - file.had)
        if file.blob.exists():
            return
        try:
            with file.part.open("ab") as opened:
                names.http_get(
                    file.url,
                    _CountingFile(opened, check_cancel, arrived, file),
                    resume_size=present,
                    # No compression: a few compressed bytes could become very many.
                    headers={**names.build_hf_headers(), "Accept-Encoding": "identity"},
                    expected_size=file.size,
                    displayed_filename=file.name,
                    tqdm_class=bar,
                )
        except OSError as error:
            if error.errno in _DISK_FULL:
                file.part.unlink()
            raise
        except _TooManyBytesError:
            file.part.unlink()
            raise DownloadError(
                f"{file.repo_id}: {shown(file.name)} should have {file.size} bytes, but the server "
                "sent more. The download was deleted: try again later.",
                model=file.repo_id,
            ) from None
        if not matches_hash(file.part, file.etag, check_cancel):
            file.part.unlink()
            raise damaged(file.repo_id, file.name)
        file.part.replace(file.blob)


@contextlib.contextmanager
def _locked(file: RemoteFile, check_cancel: Callable[[], None]) -> Iterator[None]:
    """Hold the file's lock; call `check_cancel` regularly while waiting for it."""
    lock = upstream.RESUMABLE.names.WeakFileLock
    for folder in (file.lock.parent, file.blob.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            check_cancel()
            with contextlib.suppress(TimeoutError):
                stack.enter_context(lock(file.lock, timeout=0.5))
                break
        yield


def _is_damaged(file: RemoteFile, check_cancel: Callable[[], None]) -> bool:
    """Return whether the cache has the file with a wrong size or hash."""
    if not file.blob.exists():
        return False
    size = file.blob.stat().st_size
    return size != file.size or (
        size <= _CHECKED_AGAIN and not matches_hash(file.blob, file.etag, check_cancel)
    )


class _TooManyBytesError(Exception):
    """Raised when more bytes arrive than the size of the file."""


class _CountingFile:
    """An open file that counts written bytes, enforces the size, and checks for a cancel."""

    def __init__(
        self, opened: Any, check_cancel: Callable[[], None], arrived: Arrived, file: RemoteFile
    ) -> None:
        self._file, self._check_cancel, self._arrived = opened, check_cancel, arrived
        self._max_bytes = file.size
        self.tell, self.seek = opened.tell, opened.seek

    def write(self, piece: bytes) -> None:
        self._check_cancel()
        if self._file.tell() + len(piece) > self._max_bytes:
            raise _TooManyBytesError
        self._file.write(piece)
        self._arrived(len(piece))

    def truncate(self) -> None:
        """Drop the bytes after the position: the server sends the file from there."""
        at = self._file.tell()
        before = self._file.seek(0, 2)
        self._file.seek(at)
        self._file.truncate()
        self._arrived(at - before)


def matches_hash(path: Path, etag: str, check_cancel: Callable[[], None] = lambda: None) -> bool:
    """Return whether a file matches its etag; True if the etag is not a hash of the Hub.

    Parameters
    ----------
    path : Path
    etag : str
    check_cancel : callable
        Called between pieces; its exceptions are propagated.
    """
    if len(etag) == 64:
        digest = hashlib.sha256()
    elif len(etag) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            check_cancel()
            digest.update(piece)
    return digest.hexdigest() == etag.lower()


def damaged(repo_id: str, name: str) -> DownloadError:
    """Return the error for a file that does not match its hash."""
    return DownloadError(
        f"{repo_id}: {shown(name)} arrived damaged (its hash does not match), and was deleted: "
        "try again.",
        model=repo_id,
    )


def _contradicted(listing: Listing, name: str, how: str) -> DownloadError:
    return DownloadError(
        f"{listing.repo_id}: {shown(name)} {how}, unlike in the Hub's listing of commit "
        f"{listing.commit[:8]}, and was not downloaded: try again later.",
        model=listing.repo_id,
    )
