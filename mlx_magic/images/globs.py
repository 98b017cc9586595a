"""Globs with a limit on the number of entries, which do not follow cycles of links."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlx_magic.errors import ImageError
from mlx_magic.formatting import short_label
from mlx_magic.images.typed import lookalikes

MAX_ENTRIES = 100_000
"""Maximum number of folder entries that a glob may visit."""


def match_files(
    pattern: str, folder: Path, *, checkpoint: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Yield the matches of a glob like `glob.iglob`: relative if the pattern is relative.

    ``**`` is any depth. Names that begin with a dot match only patterns that do. A link to a
    parent folder is not followed.

    Parameters
    ----------
    pattern : str
    folder : Path
        Base of a relative pattern.
    checkpoint : callable
        Called at each entry; may raise.

    Raises
    ------
    ImageError
        If more than `MAX_ENTRIES` entries had to be visited.
    OSError, ValueError
        If the pattern is not a valid path.
    """
    anchor = Path(pattern).anchor
    parts = list(Path(pattern).relative_to(anchor).parts)
    walk = _Walk(folder, short_label(pattern), checkpoint)
    # A trailing slash matches folders only, which are not images.
    return iter(()) if pattern.endswith(os.sep) else walk.match(anchor, parts, frozenset())


@dataclass(slots=True)
class _Walk:
    folder: Path
    label: str
    checkpoint: Callable[[], None]
    entries_seen: int = field(default=0, init=False)

    def match(
        self, parent: str, parts: list[str], ancestors: frozenset[tuple[int, int]]
    ) -> Iterator[str]:
        """Yield matches of `parts` in `parent`; `ancestors` are the identities of its parents."""
        part, rest = parts[0], parts[1:]
        if part == "**":
            yield from self._any_depth(parent, rest, ancestors)
        elif not glob.has_magic(part):
            self._count()
            here = os.path.join(parent, part)  # noqa: PTH118 - Path would drop "./"
            if rest:
                names = [part]
                if not os.path.lexists(self.folder / here):
                    names = lookalikes.same_looks(self.folder / parent, part)
                for name in names:
                    here = os.path.join(parent, name)  # noqa: PTH118
                    yield from self.match(here, rest, frozenset())
            elif os.path.lexists(self.folder / here):
                yield here
            else:
                for name in lookalikes.same_looks(self.folder / parent, part):
                    yield os.path.join(parent, name)  # noqa: PTH118
        else:
            matches = _matcher(part)
            hidden = part.startswith(".")
            for entry in self._entries(parent):
                if not matches(entry.name) or (entry.name.startswith(".") and not hidden):
                    continue
                here = os.path.join(parent, entry.name)  # noqa: PTH118
                if not rest:
                    yield here
                elif entry.is_dir():
                    yield from self.match(here, rest, frozenset())

    def _any_depth(
        self, parent: str, rest: list[str], ancestors: frozenset[tuple[int, int]]
    ) -> Iterator[str]:
        while rest and rest[0] == "**":  # repeated ** are the same as one
            rest = rest[1:]
        try:
            status = (self.folder / parent).stat()
        except OSError:
            return
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            return
        if rest:
            yield from self.match(parent, rest, frozenset())
        for entry in self._entries(parent):
            if entry.name.startswith("."):
                continue
            here = os.path.join(parent, entry.name)  # noqa: PTH118
            if not rest:
                yield here
            if _is_folder(entry):
                yield from self._any_depth(here, rest, ancestors | {identity})

    def _entries(self, parent: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder / parent) as entries:
                for entry in entries:
                    self._count()
                    yield entry
        except OSError:  # missing, no permission or not a folder: no matches
            return

    def _count(self) -> None:
        self.checkpoint()
        self.entries_seen += 1
        if self.entries_seen > MAX_ENTRIES:
            raise ImageError(
                f"'{self.label}' looks through more than {MAX_ENTRIES} files and folders: "
                "begin it with a smaller folder.",
                source=self.label,
            )


def _matcher(pattern: str) -> Callable[[str], object]:
    """Return a function that matches names with a pattern, whatever spaces and accents they use."""
    exact = re.compile(fnmatch.translate(pattern)).match
    seen = re.compile(fnmatch.translate(lookalikes.look(pattern))).match
    return lambda name: exact(name) or (not name.isascii() and seen(lookalikes.look(name)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
