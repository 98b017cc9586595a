"""Images from strings: paths and globs."""

from __future__ import annotations

import difflib
import glob
import io
import os
import re
import stat
from itertools import islice
from pathlib import Path
from typing import Protocol

from mlx_magic.argument_checks import NO_NAME
from mlx_magic.cancellation import CancelToken
from mlx_magic.errors import ImageError, ImageNotFoundError
from mlx_magic.formatting import reason, short_label
from mlx_magic.images.formats import SNIFF_BYTES, image_format
from mlx_magic.images.globs import match_files
from mlx_magic.images.limits import MAX_IMAGES, check_bytes
from mlx_magic.images.typed import lookalikes
from mlx_magic.user_folders import cwd, expanded

_PIECE = 1 << 20
# Matches of a glob that are counted exactly; more are too many in any case.
_GLOB_LIMIT = 10_000


class Readable(Protocol):
    """The protocol of an open file."""

    def read(self, size: int, /) -> bytes | None:
        """Return at most `size` bytes; empty or None at the end."""
        ...


def find_files(
    text: str, base: Path | None = None, cancel: CancelToken | None = None
) -> list[Path]:
    """Return the files that match a path or a glob. An existing file takes precedence.

    Parameters
    ----------
    text : str
        A path or a glob; ``~`` is the home folder, ``**`` any depth.
    base : Path, optional
        Base of relative paths; the current folder by default.
    cancel : CancelToken, optional
        Checked while a glob visits folders.

    Returns
    -------
    list of Path
        One file, or all matches of the glob in natural order (``a2`` before ``a10``).

    Raises
    ------
    ImageNotFoundError
        If there is no such file, or the glob matches none.
    ImageError
        If it is a folder, is not accessible, or the glob matches too many files.
    """
    label = short_label(text)
    folder = cwd() if base is None else base
    if not text.strip():
        raise ImageNotFoundError("An empty string is not a path to an image.", source=label)
    if (bad := NO_NAME.search(text)) is not None:
        what = "a zero byte" if bad[0] == "\0" else f"{bad[0]!a}, half of a surrogate pair,"
        raise ImageNotFoundError(
            f"'{label}' has {what} at position {bad.start()}: no file has such a name.",
            source=label,
        )
    try:
        path = folder / expanded(text)
        same = lookalikes.find(path)
        if len(same) == 1:
            return [_regular_file(same[0], label)]
        if same:
            message = lookalikes.ambiguity(f"'{label}'", same)
            raise ImageNotFoundError(message, source=label)
        if not glob.has_magic(text):
            raise ImageNotFoundError(_missing(path, label), source=label)
        matches = _glob(text, folder, label, cancel)
    # The name has a NUL, is too long for the file system, its folder has no permission, ...
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageNotFoundError(
            f"{label} is not a path to an image: {reason(error)}.", source=label
        ) from error
    if not matches:
        raise ImageNotFoundError(
            f"No file matches '{label}' in {short_label(str(folder))}.", source=label
        )
    return matches


def exists(text: str, base: Path | None = None) -> bool:
    """Return whether there is a file of exactly this name."""
    try:
        return ((cwd() if base is None else base) / expanded(text)).exists()
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, of an unknown ~user
        return False


def path_label(path: Path, text: str, base: Path | None = None) -> str:
    """Return the label of a found file: relative if `text` was relative."""
    folder = cwd() if base is None else base
    if text.startswith("~") or Path(text).is_absolute() or not path.is_relative_to(folder):
        return short_label(str(path))
    return short_label(str(path.relative_to(folder)))


def read_file(path: Path, label: str, cancel: CancelToken | None = None) -> bytes:
    """Return the content of an image file, within the limit.

    If the first bytes are not those of an image, only these are read and returned.

    Raises
    ------
    ImageError
        If it cannot be read, or is not a regular file.
    ImageTooLargeError
        If it has more than `MAX_FILE_BYTES`.
    Cancelled
        If `cancel` was cancelled.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_nonblocking) as file:
            status = os.fstat(file.fileno())
            # The path may have been replaced since it was checked; this checks the open file.
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{label} is not a regular file.", source=label)
            check_bytes(status.st_size, label)
            return read_limited(file, label, cancel, images_only=True)
    except OSError as error:
        raise ImageError(f"{label} cannot be read: {reason(error)}.", source=label) from error


def read_limited(
    file: Readable,
    label: str,
    cancel: CancelToken | None = None,
    *,
    images_only: bool = False,
) -> bytes:
    """Return the rest of a file, within the limit.

    Parameters
    ----------
    file : object with ``read``
    label : str
    cancel : CancelToken, optional
        Checked after each piece.
    images_only : bool
        Whether to stop after the first bytes if they are not those of an image. System files may
        have no size and no end.

    Raises
    ------
    ImageTooLargeError
        If there is more than `MAX_FILE_BYTES`.
    TypeError
        If ``read`` does not return bytes.
    """
    buffer = io.BytesIO()
    token = cancel or CancelToken()
    size, wanted = 0, SNIFF_BYTES if images_only else _PIECE
    while piece := file.read(wanted):
        token.checkpoint()
        if not isinstance(piece, bytes):
            raise TypeError(f"read() gave {type(piece).__name__}")
        size += buffer.write(piece)
        check_bytes(size, label)
        if images_only and size >= SNIFF_BYTES and wanted != _PIECE:
            if image_format(buffer.getvalue()[:SNIFF_BYTES]) is None:
                break
            wanted = _PIECE
    return buffer.getvalue()


def _open_nonblocking(path: str, flags: int) -> int:
    # If the file was replaced by a pipe, opening must not wait for its other end.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a case-insensitive sort key that puts ``a2`` before ``a10``."""
    parts = re.split(r"([0-9]+)", text)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts]
    return [*key, (2, 0, text)]


def _regular_file(path: Path, label: str) -> Path:
    if path.is_dir():
        raise ImageError(
            f"{label} is a folder: name its images, like '{label.rstrip('/')}/*.png'.",
            source=label,
        )
    # Reading a pipe or a device could block the kernel forever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ImageError(f"{label} is not a regular file.", source=label)
    return path


def _glob(text: str, folder: Path, label: str, cancel: CancelToken | None) -> list[Path]:
    checkpoint = (cancel or CancelToken()).checkpoint
    found = match_files(str(expanded(text)), folder, checkpoint=checkpoint)
    names = list(islice(found, _GLOB_LIMIT + 1))
    files = [folder / name for name in names if (folder / name).is_file()]
    if len(files) > MAX_IMAGES or len(names) > _GLOB_LIMIT:
        count = len(files) if len(names) <= _GLOB_LIMIT else f"more than {_GLOB_LIMIT}"
        raise ImageError(
            f"'{label}' matches {count} files: at most {MAX_IMAGES} images fit in one request.",
            source=label,
        )
    return sorted(files, key=lambda path: natural_key(str(path)))


def _missing(path: Path, label: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"No file '{label}': there is no folder {short_label(str(folder))}."
    names = [entry.name for entry in islice(folder.iterdir(), _GLOB_LIMIT) if entry.is_file()]
    by_case = {name.casefold(): name for name in sorted(names, reverse=True)}
    near = difflib.get_close_matches(path.name.casefold(), sorted(by_case), n=1, cutoff=0.6)
    message = f"No file '{short_label(path.name)}' in {short_label(str(folder))}"
    if not near:
        return f"{message}."
    name = by_case[near[0]]
    unseen = lookalikes.difference(name, path.name)
    # The code points last: they are what tells two names apart that look the same.
    return f"{message}; did you mean '{short_label(name)}'?{f' Its {unseen}.' if unseen else ''}"
