"""Large files of a repository into the Hub's cache: resumed, checked, and only then put there.

The Hub's client begins a file anew when it was stopped in the middle of it, and looks at
its size only. So the bytes go into a file beside the cache's own; once they are what
their hash says, that becomes the one where the client looks first.
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
from mlx_magic.models.hub.listing import ListedFile, Listing, digest_of

PART = ".mlx-magic.part"
"""How the names of files end that have not arrived completely."""

MOST_PARALLEL = 4
"""Files that are fetched at the same time."""

_PIECE = 1 << 20
_CHECKED_AGAIN = 64 * 2**20  # bytes; a larger file takes long, and was checked when it came
# A full disk would harm whatever else is at work on this machine.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

Arrived = Callable[[int], None]
"""Takes a number of bytes; less than none if they were in vain."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository, and where it goes.

    Attributes
    ----------
    repo_id, name : str
    url : str
    size : int
        Bytes.
    etag : str
        What the Hub knows its content by, and the cache its file: its SHA-256 for a large
        file, git's hash for others. Hexadecimal digits, since it is part of paths.
    repository : Path
        The repository's folder in the cache.
    had : int
        Bytes of it that were on this disk when it was looked for.
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
        """Where the client looks for its content."""
        return self.repository / "blobs" / self.etag

    @property
    def part(self) -> Path:
        """What there is of it so far."""
        return self.repository / "blobs" / f"{self.etag}{PART}"

    @property
    def lock(self) -> Path:
        """The lock that the client takes for it, in any process."""
        return self.repository.parent / ".locks" / self.repository.name / f"{self.etag}.lock"

    @property
    def arrived(self) -> int:
        """Bytes of it that are on this disk now."""
        if self.blob.exists():
            return self.size
        with contextlib.suppress(OSError):
            return min(self.part.stat().st_size, self.size)
        return 0


def find(
    listing: Listing, listed: ListedFile, *, endpoint: str | None, repository: Path
) -> RemoteFile | None:
    """Ask the Hub for a file's size and hash; None if it has to be left to the client.

    Parameters
    ----------
    listing : Listing
        The commit whose file it is.
    listed : ListedFile
    endpoint : str or None
        None is the client's own.
    repository : Path
        The repository's folder in the cache.

    Raises
    ------
    DownloadError
        When the answer is about another commit or file than the listing.
    CheckpointError
        When it is larger than such a file may be.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

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
    if size > getattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 50 * 10**9):
        return None
    file = RemoteFile(repo_id, name, url, size, digest, repository)
    return replace(file, had=file.arrived)


def run_parallel(
    items: Sequence[_T], work: Callable[[_T, Callable[[], None]], None], *, cancel: CancelToken
) -> None:
    """Do the same with each item, with some of them at the same time.

    Parameters
    ----------
    items : sequence
    work : callable
        Takes an item, and what to call now and then: it raises when the work is to stop.
    cancel : CancelToken

    Raises
    ------
    Cancelled
    Exception
        The first that was raised; the others are stopped then.
    """
    waiting: queue.SimpleQueue[_T] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    failures: list[BaseException] = []

    def look() -> None:
        cancel.checkpoint()
        if failures:
            raise Cancelled

    def run() -> None:
        try:
            with contextlib.suppress(queue.Empty):
                while not failures:
                    work(waiting.get_nowait(), look)
        except BaseException as error:
            failures.append(error)

    # The exit of the process would wait for an executor's threads.
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
    files: Sequence[RemoteFile], *, cancel: CancelToken, arrived: Arrived, bar: type[Any]
) -> None:
    """Fetch files, some of them at the same time; what was there of them is not fetched again.

    Parameters
    ----------
    files : sequence of RemoteFile
    cancel : CancelToken
    arrived : callable
        Takes the bytes that came beyond `RemoteFile.had`, from several threads.
    bar : type
        A progress bar that draws nothing.

    Raises
    ------
    Cancelled
    DownloadError
        When a file is not what its hash says.
    Exception
        The first that the Hub's client raised; the others are stopped then.
    """
    run_parallel(files, lambda file, look: _fetch(file, look, arrived, bar), cancel=cancel)


def link(blob: Path, pointer: Path) -> None:
    """Put a file of the cache where the client looks for it by its commit and name."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.parent / f".{secrets.token_hex(8)}.link"
    try:
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        blob.replace(pointer)  # as the client does where there are no links
        return
    temporary.replace(pointer)


def write_ref(repository: Path, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch or tag is, for who looks without the network."""
    path = repository / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.ref"
    temporary.write_text(commit)
    temporary.replace(path)


def _fetch(file: RemoteFile, look: Callable[[], None], arrived: Arrived, bar: type[Any]) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with _locked(file, look):
        if _is_damaged(file, look):
            file.blob.unlink()
        # Somebody else may have fetched it meanwhile.
        present = file.arrived
        arrived(present - file.had)
        if file.blob.exists():
            return
        try:
            with file.part.open("ab") as opened:
                http_get(
                    file.url,
                    _CountingFile(opened, look, arrived, file),
                    resume_size=present,
                    # Compressed, a few bytes could become very many.
                    headers={**build_hf_headers(), "Accept-Encoding": "identity"},
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
                f"{file.repo_id}: more bytes came of {shown(file.name)} than the {file.size} that "
                "it has, and all were thrown away: try again later.",
                model=file.repo_id,
            ) from None
        if not matches_hash(file.part, file.etag, look):
            file.part.unlink()
            raise damaged(file.repo_id, file.name)
        file.part.replace(file.blob)


@contextlib.contextmanager
def _locked(file: RemoteFile, look: Callable[[], None]) -> Iterator[None]:
    """Hold the file's lock; while somebody else does, look now and then."""
    from huggingface_hub.utils import WeakFileLock

    for folder in (file.lock.parent, file.blob.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            look()
            with contextlib.suppress(TimeoutError):
                stack.enter_context(WeakFileLock(file.lock, timeout=0.5))
                break
        yield


def _is_damaged(file: RemoteFile, look: Callable[[], None]) -> bool:
    """Say whether the cache has its content, and that is not what its hash says."""
    if not file.blob.exists():
        return False
    size = file.blob.stat().st_size
    return size != file.size or (
        size <= _CHECKED_AGAIN and not matches_hash(file.blob, file.etag, look)
    )


class _TooManyBytesError(Exception):
    """Raised when more of a file arrives than it has."""


class _CountingFile:
    """An open file that counts what is written, takes no more than it may, and can be stopped."""

    def __init__(
        self, opened: Any, look: Callable[[], None], arrived: Arrived, file: RemoteFile
    ) -> None:
        self._file, self._look, self._arrived = opened, look, arrived
        self._most = file.size
        self.tell, self.seek = opened.tell, opened.seek

    def write(self, piece: bytes) -> None:
        self._look()
        if self._file.tell() + len(piece) > self._most:
            raise _TooManyBytesError
        self._file.write(piece)
        self._arrived(len(piece))

    def truncate(self) -> None:
        """Drop what is behind the position: the server sends the file from there on."""
        at = self._file.tell()
        before = self._file.seek(0, 2)
        self._file.seek(at)
        self._file.truncate()
        self._arrived(at - before)


def matches_hash(path: Path, etag: str, look: Callable[[], None] = lambda: None) -> bool:
    """Say whether a file's content is what its etag says; True if that is no hash of the Hub's.

    Parameters
    ----------
    path : Path
    etag : str
    look : callable
        Called between pieces; what it raises ends it.
    """
    if len(etag) == 64:
        digest = hashlib.sha256()
    elif len(etag) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            look()
            digest.update(piece)
    return digest.hexdigest() == etag.lower()


def damaged(repo_id: str, name: str) -> DownloadError:
    """Return the error for a file that is not what its hash says."""
    return DownloadError(
        f"{repo_id}: {shown(name)} arrived damaged (its hash is another), and was thrown away: "
        "try again.",
        model=repo_id,
    )


def _contradicted(listing: Listing, name: str, how: str) -> DownloadError:
    return DownloadError(
        f"{listing.repo_id}: {shown(name)} {how}, unlike in the Hub's listing of commit "
        f"{listing.commit[:8]}, and is not fetched: try again later.",
        model=listing.repo_id,
    )
