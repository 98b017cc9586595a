"""Large files of a repository into the Hub's cache: resumed, checked, and only then put there.

The Hub's client begins a file anew when it was stopped in the middle of it, and looks at
its size only. So the bytes go into a file beside the cache's own; once they are what
their hash says, that becomes the one where the client looks first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_magic.errors import DownloadError
from mlx_magic.inference.cancel import Cancelled, CancelToken

PART = ".mlx-magic.part"
"""How the names of files end that have not arrived completely."""

MOST_TOGETHER = 4
"""Files that are fetched at the same time."""

_PIECE = 1 << 20
# A full disk would harm whatever else is at work on this machine.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

Arrived = Callable[[int], None]
"""Takes a number of bytes; less than none if they were in vain."""


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
        file, git's hash for others.
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
    repo_id: str, name: str, *, commit: str | None, endpoint: str | None, repository: Path
) -> RemoteFile | None:
    """Ask the Hub for a file's size and hash; None if it has to be left to the client.

    Parameters
    ----------
    repo_id, name : str
    commit : str or None
        Its hash; None is the main branch.
    endpoint : str or None
        None is the client's own.
    repository : Path
        The repository's folder in the cache.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo_id, name, revision=commit, endpoint=endpoint)
    found = get_hf_file_metadata(url, endpoint=endpoint)
    most = getattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 50 * 10**9)
    if not found.etag or found.size is None or found.size > most:
        return None
    file = RemoteFile(repo_id, name, url, found.size, found.etag, repository)
    return replace(file, had=file.arrived)


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
    waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    for file in files:
        waiting.put(file)
    failures: list[BaseException] = []

    def look() -> None:
        cancel.checkpoint()
        if failures:
            raise Cancelled

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while not failures:
                _fetch(waiting.get_nowait(), look, arrived, bar)

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    # The exit of the process would wait for an executor's threads.
    threads = [
        threading.Thread(target=run, name="mlx-magic-download", daemon=True)
        for _ in files[:MOST_TOGETHER]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _fetch(file: RemoteFile, look: Callable[[], None], arrived: Arrived, bar: type[Any]) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with _alone_with(file, look):
        # Somebody else may have fetched it meanwhile.
        there = file.arrived
        arrived(there - file.had)
        if file.blob.exists():
            return
        try:
            with file.part.open("ab") as opened:
                http_get(
                    file.url,
                    _Counted(opened, look, arrived),
                    resume_size=there,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=file.name,
                    tqdm_class=bar,
                )
        except OSError as error:
            if error.errno in _NO_ROOM:
                file.part.unlink()
            raise
        if not is_whole(file.part, file.etag, look):
            file.part.unlink()
            raise damaged(file.repo_id, file.name)
        file.part.replace(file.blob)


@contextlib.contextmanager
def _alone_with(file: RemoteFile, look: Callable[[], None]) -> Iterator[None]:
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


class _Counted:
    """An open file that counts what is written, and is a cancellation point."""

    def __init__(self, file: Any, look: Callable[[], None], arrived: Arrived) -> None:
        self._file, self._look, self._arrived = file, look, arrived
        self.tell, self.seek = file.tell, file.seek

    def write(self, piece: bytes) -> None:
        self._look()
        self._file.write(piece)
        self._arrived(len(piece))

    def truncate(self) -> None:
        """Drop what is behind the position: the server sends the file from there on."""
        at = self._file.tell()
        before = self._file.seek(0, 2)
        self._file.seek(at)
        self._file.truncate()
        self._arrived(at - before)


def is_whole(path: Path, etag: str, look: Callable[[], None] = lambda: None) -> bool:
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
        f"{repo_id}: {name} arrived damaged (its hash is another), and was thrown away: try again.",
        model=repo_id,
    )
