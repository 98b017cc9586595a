"""The Hub's listing of the files of one commit, read within limits and validated.

Names and sizes in it are untrusted; the names become paths in the cache.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from mlx_magic.errors import CheckpointError, DownloadError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import remote_code, strict_json
from mlx_magic.models.hub import upstream

MOST_BYTES = 8 * 2**20
"""Maximum bytes of a listing; one of 10,000 files has about 3 MB."""

MOST_FILES = 2_000
"""Maximum number of files that are downloaded for a model."""

MOST_SMALL_BYTES = 160 * 2**20
"""Maximum bytes of all files but the weights: `remote_code` reads no more."""

_TIMEOUT = 30
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_LONGEST_PART = 200  # file systems allow 255 bytes


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a commit.

    Attributes
    ----------
    name : str
        Path in the repository, with ``/`` between folders.
    size : int or None
        Bytes; None if the listing has no size.
    digest : str or None
        SHA-256 of a large file, git's hash of any other, in hexadecimal digits.
    """

    name: str
    size: int | None = None
    digest: str | None = None

    @property
    def limit(self) -> int | None:
        """Maximum bytes of the file; None for weights."""
        if self.name.endswith(".safetensors"):
            return None
        limits = remote_code.limits_of(self.name)
        return strict_json.VOCABULARY.nbytes if limits is None else limits.nbytes

    def require_size(self, size: int | None, repo_id: str) -> None:
        """Refuse a file that is too large, before it is downloaded.

        Raises
        ------
        CheckpointError
        """
        if size is not None and self.limit is not None and size > self.limit:
            raise CheckpointError(
                f"{repo_id}: {shown(self.name)} is too large ({size / 1e6:.1f} MB, of at most "
                f"{self.limit / 1e6:.1f} MB): choose another model.",
                model=repo_id,
            )


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one commit.

    Attributes
    ----------
    repo_id : str
    commit : str
        Hash of the commit: 40 hexadecimal digits.
    files : mapping
        Name to `ListedFile`, in the Hub's order.
    """

    repo_id: str
    commit: str
    files: Mapping[str, ListedFile]

    def chosen(self, patterns: Iterable[str], *, folders: bool = False) -> list[ListedFile]:
        """Return the files that match one of the patterns, after checking their names.

        Parameters
        ----------
        patterns : iterable of str
        folders : bool
            Whether to include files in deeper folders than `remote_code.wanted_code` reads.

        Raises
        ------
        DownloadError
            When a matching name leads outside the repository, or two names are the same on some
            file systems.
        """
        wanted = tuple(patterns)
        found: list[ListedFile] = []
        for name, file in self.files.items():
            if not any(fnmatchcase(name, pattern) for pattern in wanted):
                continue
            _require_name(name, self.repo_id)
            *folder_names, _ = name.split("/")
            if folders or (len(folder_names) <= 1 and not name.startswith(".")):
                found.append(file)
        _require_distinct(found, self.repo_id)
        return found


def read(
    repo_id: str,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    check_cancel: Callable[[], None] = lambda: None,
) -> Listing:
    """Query the Hub for the files and the commit of a revision.

    Parameters
    ----------
    repo_id : str
    revision : str, optional
        Branch, tag or commit; the main branch if left out.
    endpoint : str, optional
        Replaces the Hub client's endpoint.
    check_cancel : callable
        Called between pieces of the response; its exceptions are propagated.

    Raises
    ------
    DownloadError
        When the response is not a valid listing, or is too large.
    Exception
        Exceptions of the Hub client, when the Hub refuses or is out of reach.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    if upstream.LISTINGS.off is not None:
        require_revision(revision, repo_id)
        listing = _parse_listing(_asked_by_client(api, repo_id, revision), repo_id)
    else:
        upstream.LISTINGS.names.validate_repo_id(repo_id)
        require_revision(revision, repo_id)
        url = f"{api.endpoint}/api/models/{repo_id}"
        if revision is not None:
            url += f"/revision/{quote(revision, safe='')}"
        listing = _parse_listing(_answer(url, repo_id, check_cancel), repo_id)
    if revision is not None and _COMMIT.fullmatch(revision) and listing.commit != revision:
        raise _invalid_listing(repo_id, "it lists another commit than was requested")
    return listing


def require_revision(revision: str | None, repo_id: str) -> None:
    """Refuse an invalid revision: its name becomes a path in the cache.

    Raises
    ------
    DownloadError
    """
    if revision is None:
        return
    parts = revision.split("/")
    if not revision.isprintable() or "\\" in revision or not all(map(_is_path_part, parts)):
        raise DownloadError(
            f"{repo_id}: {shown(repr(revision))} is not a valid revision: write a branch, a tag "
            "or a commit.",
            model=repo_id,
        )


def require_files(files: Iterable[ListedFile], repo_id: str) -> None:
    """Refuse a configuration and vocabulary of too many files or bytes.

    Raises
    ------
    CheckpointError
    """
    count = total = 0
    for file in files:
        file.require_size(file.size, repo_id)
        count += 1
        total += file.size or 0
    if count > MOST_FILES or total > MOST_SMALL_BYTES:
        raise CheckpointError(
            f"{repo_id}: its configuration and vocabulary are too large ({count} files of "
            f"{total / 1e6:.1f} MB, of at most {MOST_FILES} of {MOST_SMALL_BYTES / 1e6:.1f} MB): "
            "choose another model.",
            model=repo_id,
        )


def digest_of(text: object) -> str | None:
    """Return a valid hash in lower case, or None. The hash becomes the name of a file."""
    if not isinstance(text, str):
        return None
    text = text.lower()
    return text if _DIGEST.fullmatch(text) else None


def _answer(url: str, repo_id: str, check_cancel: Callable[[], None]) -> bytes:
    names = upstream.LISTINGS.names
    # No compression: a few compressed bytes could become very many.
    headers = {**names.build_hf_headers(), "Accept-Encoding": "identity"}
    request = {"headers": headers, "params": {"blobs": True}, "timeout": _TIMEOUT}
    with names.get_session().stream("GET", url, **request) as response:
        if response.status_code != 200:
            # Without the body, which the client would read completely.
            error_headers = {
                k: v for k, v in response.headers.items() if k.lower().startswith("x-error")
            }
            names.hf_raise_for_status(
                type(response)(
                    response.status_code, headers=error_headers, request=response.request
                )
            )
            raise _invalid_listing(repo_id, f"HTTP {response.status_code}")
        raw = bytearray()
        for piece in response.iter_bytes(2**16):
            check_cancel()
            raw += piece
            if len(raw) > MOST_BYTES:
                raise _invalid_listing(repo_id, f"it is larger than {MOST_BYTES / 1e6:.0f} MB")
    return bytes(raw)


def _asked_by_client(api: Any, repo_id: str, revision: str | None) -> bytes:
    """Let the Hub client read the listing, without a limit of its size."""
    info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    siblings = [
        {
            "rfilename": file.rfilename,
            "size": file.size,
            "blobId": file.blob_id,
            "lfs": None if file.lfs is None else {"sha256": file.lfs.sha256},
        }
        for file in info.siblings or ()
    ]
    return json.dumps({"sha": info.sha, "siblings": siblings}).encode()


def _parse_listing(raw: bytes, repo_id: str) -> Listing:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _invalid_listing(repo_id, "it is not JSON") from error
    siblings = answer.get("siblings") if isinstance(answer, dict) else None
    if not isinstance(siblings, list):
        raise _invalid_listing(repo_id, "it names no files")
    commit = answer.get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _invalid_listing(repo_id, "it names no commit")
    files: dict[str, ListedFile] = {}
    for sibling in siblings:
        file = _file(sibling)
        if file is None or file.name in files:
            raise _invalid_listing(repo_id, "it names a file twice, or without its name")
        files[file.name] = file
    return Listing(repo_id, commit, files)


def _file(sibling: Any) -> ListedFile | None:
    if not isinstance(sibling, dict) or not isinstance(name := sibling.get("rfilename"), str):
        return None
    lfs = sibling.get("lfs")
    digest = lfs.get("sha256") if isinstance(lfs, dict) else sibling.get("blobId")
    size = sibling.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**53:
        size = None
    return ListedFile(name, size, digest_of(digest))


def _invalid_listing(repo_id: str, why: str) -> DownloadError:
    return DownloadError(
        f"{repo_id} could not be fetched: the Hub's answer is not a listing of files ({why}): try "
        "again later, and check HF_ENDPOINT and any proxy.",
        model=repo_id,
    )


def _is_path_part(part: str) -> bool:
    return part not in ("", ".", "..") and len(part.encode(errors="replace")) <= _LONGEST_PART


def _require_name(name: str, repo_id: str) -> None:
    if name.isprintable() and "\\" not in name and all(map(_is_path_part, name.split("/"))):
        return
    raise DownloadError(
        f"{repo_id} lists a file that cannot be in it ({shown(repr(name))}), and nothing was "
        "fetched: choose a model from a source that you trust.",
        model=repo_id,
    )


def _require_distinct(files: Iterable[ListedFile], repo_id: str) -> None:
    """Refuse names that are equal on many file systems, or are both a file and a folder."""
    seen: set[str] = set()
    folders: set[str] = set()
    for file in files:
        name = unicodedata.normalize("NFKC", file.name).casefold()
        parts = name.split("/")
        folders |= {"/".join(parts[:end]) for end in range(1, len(parts))}
        if name in seen or name in folders or seen & folders:
            raise DownloadError(
                f"{repo_id} lists two files of one name ({shown(repr(file.name))}): choose "
                "another model.",
                model=repo_id,
            )
        seen.add(name)
