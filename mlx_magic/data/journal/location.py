"""Where a journal is kept: beside the notebook."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlx_magic.user_folders import absolute, cwd

FOLDER = ".mlx-magic"
NAME = "journal.sqlite"

_NETWORK = (
    "9p", "afpfs", "afs", "ceph", "cifs", "davfs", "drvfs", "fuse.gcsfuse", "fuse.rclone",
    "fuse.s3fs", "fuse.sshfs", "fuse.glusterfs", "gluster", "lustre", "ncpfs", "nfs", "nfs4",
    "smb3", "smbfs", "virtiofs", "vboxsf",
)  # fmt: skip
_SYNCHRONIZED = (
    "dropbox", "onedrive", "google drive", "googledrive", "nextcloud", "owncloud",
    "mobile documents", "cloudstorage", "icloud drive", "pcloud", "box sync", "mega",
)  # fmt: skip


def notebook_folder() -> Path:
    """Return the folder of the notebook; the working directory where it is unknown.

    Jupyter Server names the notebook in ``JPY_SESSION_NAME`` since version 2.
    """
    name = os.environ.get("JPY_SESSION_NAME", "")
    path = Path(name)
    if path.is_absolute() and path.suffix == ".ipynb" and path.is_file():
        return path.parent
    return cwd()


def default_path() -> Path:
    """Return the path of the notebook's own journal."""
    return absolute(notebook_folder() / FOLDER / NAME)


def make_folder(path: Path) -> None:
    """Make the folder of a journal; one of our own hides itself from git.

    Raises
    ------
    OSError
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ignore = path.parent / ".gitignore"
    if path.parent.name == FOLDER and not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")


def is_shared(path: Path) -> bool:
    """Whether a folder is on a network, or is synchronized by a program.

    SQLite's write-ahead log needs memory that all processes share, and files that are never
    copied one without the other (https://www.sqlite.org/wal.html).
    """
    parts = {part.casefold() for part in path.parts}
    if any(part.startswith(_SYNCHRONIZED) for part in parts):
        return True
    if sys.platform == "darwin":
        return path.parts[:2] == ("/", "Volumes")
    return _file_system(path) in _NETWORK


def _file_system(path: Path, mounts: str = "/proc/self/mounts") -> str:
    """Return the type of the file system that holds a path; empty if unknown."""
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, found = -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        at = fields[1].replace("\\040", " ")
        if path.is_relative_to(at) and len(at) >= best:
            best, found = len(at), fields[2]
    return found
