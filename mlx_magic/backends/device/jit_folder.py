"""A usable folder for the JIT compilation of MLX's CPU backend, or compilation turned off.

MLX fuses neighboring operations, writes the result as C++ into the system's folder for temporary
files, calls g++ and loads the library. Without g++ it does not compile. If the folder cannot be
used, it raises an error with the compiler's command line (mlx 0.32.4, measured).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_magic.formatting import shown

VARIABLES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")
"""Variables that name the folder. C++'s ``temp_directory_path`` reads them at each compilation."""

FOLDER = "mlx"
"""MLX's own folder within the folder for temporary files."""

NEEDED = 2**20
"""Bytes that must be free: a library takes 16 KB, the compiler's own files some 100 KB."""

# MLX puts the path into a command line for a shell, in double quotes.
_UNQUOTABLE = re.compile(r'["$`\\\n]')

_FAILED = re.compile(
    r"\[Compile::eval_cpu\]|temp_directory_path|Could not load C\+\+ shared library|"
    r"Failed to execute command|filesystem error: cannot create director"
)
_FULL = re.compile(r"no space left|disk quota|file too large|file size limit", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Compiling:
    """Where MLX compiles.

    Attributes
    ----------
    folder : Path or None
        The folder for temporary files that MLX uses; None if compilation is off.
    problem : str
        Why it is not the system's folder; empty if it is.
    """

    folder: Path | None
    problem: str = ""

    @property
    def words(self) -> str:
        """One line for `%vision status`."""
        remedy = "set TMPDIR to a folder that can be written to, then restart the kernel"
        if self.folder is None:
            return f"off, answers are slower ({self.problem}): {remedy}"
        return f"in {shown(str(self.folder), 200)} ({self.problem})"


def choose_jit_folder(mx: Any, others: Sequence[Path]) -> Compiling:
    """Let MLX compile in the system's folder, else in another folder, else turn compilation off.

    Parameters
    ----------
    mx : module
        ``mlx.core``.
    others : sequence of Path
        Other folders, created if needed. TMPDIR is set to the first usable one, since MLX reads
        nothing else.
    """
    inner = (FOLDER, mx.__version__, "cpu")
    own = temporary()
    problem = unusable(own, inner)
    if not problem:
        return Compiling(Path(own))
    for folder in others:
        with contextlib.suppress(OSError, ValueError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(folder) and not unusable(str(folder), inner):
                os.environ["TMPDIR"] = str(folder)
                return Compiling(folder, problem)
    mx.disable_compile()
    return Compiling(None, problem)


def temporary() -> str:
    """Return the system's folder for temporary files, as MLX finds it."""
    return next((os.environ[name] for name in VARIABLES if name in os.environ), "/tmp")


def fallback_folders(cache: Path | None) -> list[Path]:
    """Return private folders of this user for compiled libraries.

    Parameters
    ----------
    cache : Path or None
        The user's cache folder, which is tried first.
    """
    name = f"mlx-magic-{os.getuid()}" if hasattr(os, "getuid") else "mlx-magic"
    shared = [Path(base, name) for base in ("/tmp", "/var/tmp", "/dev/shm")]
    return shared if cache is None else [cache / "compiled", *shared]


def unusable(temporary: str, inner: Sequence[str] = ()) -> str:
    """Say why MLX cannot compile in a folder for temporary files; empty if it can.

    Parameters
    ----------
    temporary : str
        As TMPDIR names it. An empty str is no folder, unlike for `Path`.
    inner : sequence of str
        The folders that MLX creates within it.
    """
    label = shown(temporary, 200) or "TMPDIR, which is empty,"
    try:
        if not os.path.isdir(temporary):  # noqa: PTH112
            return f"{label} is no folder"
        if _UNQUOTABLE.search(temporary):
            return f"{label} has a quote, a backslash or a $ in its name"
        place = Path(temporary)
        for part in inner:
            if not os.path.lexists(place / part):
                break
            place = place / part
            label = shown(str(place), 200)
            if not place.is_dir():
                return f"{label} is no folder"
            if not _is_trusted(place):
                return f"other people can change {label}"
        return _unwritable(place, label)
    except (OSError, ValueError) as error:
        return f"{label}: {getattr(error, 'strerror', None) or error}"


def _unwritable(folder: Path, label: str) -> str:
    """Say why a library of NEEDED bytes cannot be written to a folder and loaded from it."""
    if sys.platform == "linux" and os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return f"{label} is mounted noexec"
    made = folder / f".mlx-magic-{secrets.token_hex(8)}"
    handle = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            left = NEEDED
            while left > 0:  # one call may write only a part
                left -= file.write(bytes(left))
    finally:
        made.unlink(missing_ok=True)
    return ""


def _is_trusted(folder: Path) -> bool:
    """Whether only this user or the system can write there: MLX loads the libraries it finds."""
    if not hasattr(os, "geteuid"):
        return True
    found = folder.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & stat.S_IWOTH


def _is_private(folder: Path) -> bool:
    return not folder.is_symlink() and _is_trusted(folder)


def failure(error: BaseException) -> str:
    """Say in a few words why MLX could not compile; empty for any other error."""
    text = str(error)
    if not _FAILED.search(text):
        return ""
    if _FULL.search(text):
        return "no space left"
    # The first line is the command; the compiler's message follows.
    said = re.search(r"(?:fatal |internal )?error: ([^\n\"]{1,160})", text)
    return shown(said[1], 160) if said else "the compiler or its folder cannot be used"
