"""The user's alias file: TOML that may be edited by hand at any time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
import threading
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_magic import user_folders
from mlx_magic.engine.request import DEMO
from mlx_magic.errors import RequestError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import strict_json
from mlx_magic.models.checkpoints.strict_json import JsonLimits

NAME = "aliases.toml"

MOST_ALIASES = 2_000
"""Maximum number of aliases in the file."""

LONGEST_ALIAS = 200
LONGEST_TARGET = 4_096
"""Maximum characters of a target; a path cannot be longer."""

PATIENCE = 10.0
"""Seconds that saving waits for the lock of another process."""

# tomllib takes a second for 200 KB of values.
_LIMITS = JsonLimits(2**18, 0)
_MOST_LINES = 5_000
_MOST_COMMAS = 5_000
_MOST_DOTS = 10_000
_MOST_BRACKETS = 50
_MOST_PROBLEMS = 20
_LONG = re.compile(r"[0-9_]{400}")
# Control characters, line separators, surrogates, and marks that change the text direction.
_NOT_PRINTABLE = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
_HEAD = """\
# Names for models, for every notebook: an alias and the folder or Hub repository it stands for.
# With an adapter: name = { model = "...", adapter = "folder" }
"""


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """What an alias stands for.

    Attributes
    ----------
    model : str
        Folder or repository id.
    adapter : str or None
        Folder of a LoRA adapter.
    """

    model: str
    adapter: str | None = None


def default_path() -> Path | None:
    """Return the path of the file in the settings folder; None if there is no such folder."""
    folder = user_folders.config()
    return None if folder is None else folder / NAME


_UNSEEN = (-1, -1, -1)
"""A state that no file has, so that the file is read as soon as it can be."""


class AliasFile:
    """Reads the file again whenever it has changed; safe from any thread.

    Invalid entries are skipped and reported in `problems`; they stay in the file.

    Parameters
    ----------
    path : Path
    patience : float
        Seconds that `save` waits for the lock of another process.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: Path, *, patience: float = PATIENCE) -> None:
        self.path = path
        self._patience = patience
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._targets: Mapping[str, AliasTarget] = {}
        self._problems: tuple[str, ...] = ()
        self._file_problem = ""
        self._alias_problems: Mapping[str, str] = {}

    @property
    def targets(self) -> Mapping[str, AliasTarget]:
        """The aliases; while the file is not valid TOML, those of its last valid state."""
        self._reload_if_changed()
        return self._targets

    @property
    def problems(self) -> tuple[str, ...]:
        """The entries of the file that cannot be used, and why; a line each."""
        self._reload_if_changed()
        return self._problems

    def problem_with(self, alias: str) -> str:
        """Return the problem of the file that may explain why an alias is unknown.

        Empty if there is none.
        """
        self._reload_if_changed()
        return self._alias_problems.get(alias) or (self._file_problem if is_alias(alias) else "")

    def save(self, alias: str, target: AliasTarget) -> None:
        """Write an alias into the file as one line; other lines are not changed.

        Processes that save at the same time do not overwrite each other's aliases.

        Raises
        ------
        RequestError
            When the file cannot be read or written, has this alias in more than one line, or
            would be too large; or when another process keeps it locked.
        """
        require_words(alias, target)
        with self._lock:
            try:
                path = _resolved(self.path)
                path.parent.mkdir(parents=True, exist_ok=True)
                with _locked(path, self._patience):
                    self._change(path, alias, target)
            except TimeoutError as error:
                raise RequestError(
                    f"{self._shown} is locked by another process that saves an alias: try again, "
                    "or end that process.",
                    option="save",
                ) from error
            except (OSError, ValueError) as error:
                raise RequestError(
                    f"{self._shown} cannot be changed ({_reason(error)}): fix it, then save again.",
                    option="save",
                ) from error

    def _change(self, path: Path, alias: str, target: AliasTarget) -> None:
        text = strict_json.text(path, _LIMITS) if os.path.lexists(path) else _HEAD
        before = _parsed(text)
        if alias not in before and len(before) >= MOST_ALIASES:
            raise ValueError(f"it has {MOST_ALIASES} aliases, and takes no more")
        changed = _with_line(text, alias, _line(alias, target))
        if len(changed.encode()) > _LIMITS.nbytes or changed.count("\n") > _MOST_LINES:
            raise ValueError("it would be too large: remove aliases that you do not use")
        if _parsed(changed) != {**before, alias: _value(target)}:
            raise RequestError(
                f"{self._shown} holds {shown(repr(alias))} in several lines: change it there.",
                option="save",
            )
        _replace(path, changed)

    @property
    def _shown(self) -> str:
        return shown(str(self.path), 400)

    def _reload_if_changed(self) -> None:
        """Read the file if it has changed since the last time."""
        try:
            found = self.path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        except FileNotFoundError:
            seen = None
        except (OSError, ValueError) as error:
            # The folder has no permission or is a file, a loop of links, a zero byte.
            self._set_unreadable(error)
            return
        with self._lock:
            if seen == self._seen:
                return
            self._seen = seen
            self._file_problem, self._alias_problems = "", {}
            if seen is None:
                self._targets, self._problems = {}, ()
                return
            try:
                content = _parsed(strict_json.text(self.path, _LIMITS))
            except (OSError, ValueError) as error:
                self._file_problem = f"{self._shown} is not read: {_reason(error)}."
                self._problems = (self._file_problem,)
                return
            self._targets, self._alias_problems = _parse_entries(content, self._shown)
            problems = list(self._alias_problems.values())
            self._problems = tuple(problems[:_MOST_PROBLEMS])
            if (more := len(problems) - _MOST_PROBLEMS) > 0:
                self._problems += (f"{self._shown}: {more} more lines cannot be used.",)

    def _set_unreadable(self, error: Exception) -> None:
        with self._lock:
            self._seen = _UNSEEN
            self._file_problem = f"{self._shown} is not read: {_reason(error)}."
            self._problems, self._alias_problems = (self._file_problem,), {}


def _parsed(text: str) -> dict[str, Any]:
    """Parse TOML of bounded size and depth. tomllib recurses at each bracket, but not at dots.

    Raises
    ------
    ValueError
    """
    if text.count("\n") > _MOST_LINES:
        raise ValueError(f"it has more than {_MOST_LINES} lines")
    if text.count(",") > _MOST_COMMAS or text.count(".") > _MOST_DOTS:
        raise ValueError(f"it has more than {_MOST_COMMAS} commas or {_MOST_DOTS} dots")
    for line in text.splitlines():
        if line.count("[") + line.count("{") > _MOST_BRACKETS or line.count(".") > 500:
            raise ValueError(f"a line has more than {_MOST_BRACKETS} brackets or 500 dots")
    if text.count("[") + text.count("{") > 20 * _MOST_BRACKETS * 10 or _LONG.search(text):
        raise ValueError("it has too many brackets, or a number of 400 digits")
    try:
        return tomllib.loads(text)
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deeply") from error


def is_alias(text: str) -> bool:
    """Return whether a text can be an alias."""
    return (
        bool(text.strip())
        and text != DEMO
        and "/" not in text
        and not text.startswith("-")
        and len(text) <= LONGEST_ALIAS
        and is_plain(text)
    )


def is_plain(text: str) -> bool:
    """Return whether a text has no control characters, line breaks or direction marks."""
    return _NOT_PRINTABLE.search(text) is None


def require_alias(alias: str) -> None:
    """Refuse a text that cannot be an alias.

    Raises
    ------
    RequestError
    """
    if not is_alias(alias):
        raise RequestError(
            f"{shown(repr(alias))} cannot be an alias: use a short name without a slash or control "
            f"characters, other than {DEMO!r}.",
            option="as",
        )


def require_words(alias: str, target: AliasTarget) -> None:
    """Refuse an alias or a target that cannot be written as a readable line of the file.

    Raises
    ------
    RequestError
    """
    require_alias(alias)
    for word in (target.model, target.adapter or ""):
        if not _is_target(word):
            raise RequestError(
                f"{shown(repr(word))} cannot be kept for an alias: it has control characters, or "
                f"more than {LONGEST_TARGET} characters. Rename it first.",
                option="save",
            )


def _is_target(text: str) -> bool:
    return len(text) <= LONGEST_TARGET and is_plain(text)


def _parse_entries(
    content: Mapping[str, Any], path: str
) -> tuple[dict[str, AliasTarget], dict[str, str]]:
    targets: dict[str, AliasTarget] = {}
    problems: dict[str, str] = {}
    for alias, value in content.items():
        name = shown(repr(alias))
        if len(targets) >= MOST_ALIASES:
            problems[alias] = f"{path}: {name} is one too many: at most {MOST_ALIASES} are read."
            continue
        if not is_alias(alias):
            problems[alias] = (
                f"{path}: {name} cannot be an alias: use a short name without a slash or control "
                f"characters, other than {DEMO!r}."
            )
            continue
        invalid = [word for word in _strings(value) if not _is_target(word)]
        if invalid:
            problems[alias] = (
                f"{path}: {name} stands for {shown(repr(invalid[0]))}: control characters, or more "
                f"than {LONGEST_TARGET} characters, cannot be used."
            )
            continue
        match value:
            case str(model) if model.strip():
                targets[alias] = AliasTarget(model)
            case {"model": str(model), "adapter": str(adapter), **others} if not others:
                targets[alias] = AliasTarget(model, adapter)
            case {"model": str(model), **others} if not others:
                targets[alias] = AliasTarget(model)
            case _:
                problems[alias] = (
                    f"{path}: {shown(alias)} is not valid: write {shown(alias)} = "
                    '"organization/name", or { model = "...", adapter = "..." }.'
                )
    return targets, problems


def _strings(value: Any) -> list[str]:
    found = value.values() if isinstance(value, dict) else [value]
    return [word for word in found if isinstance(word, str)]


def _with_line(text: str, alias: str, line: str) -> str:
    """Return the text with the alias's line added, or replaced if the alias has one."""
    lines = _lines(text)
    first_table = next((i for i, text in enumerate(lines) if text.startswith("[")), len(lines))
    at = next((i for i in range(first_table) if _key(lines[i], alias) == alias), None)
    if at is not None:
        lines[at] = line
    else:
        if first_table and not lines[first_table - 1].endswith("\n"):
            lines[first_table - 1] += "\n"
        lines.insert(first_table, line)
    return "".join(lines)


def _lines(text: str) -> list[str]:
    """Split into lines as TOML does: `str.splitlines` also splits at form feeds in comments."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _key(line: str, alias: str) -> str | None:
    """Return the key that a line assigns, if it is a complete TOML line."""
    if not line.lstrip().startswith((alias, '"', "'")):
        return None  # parsing every line would be slow
    try:
        found = tomllib.loads(line)
    except (ValueError, RecursionError):
        return None
    return next(iter(found), None)


def _value(target: AliasTarget) -> Any:
    if target.adapter is None:
        return target.model
    return {"model": target.model, "adapter": target.adapter}


def _line(alias: str, target: AliasTarget) -> str:
    # JSON strings are valid TOML strings: both use the same escapes.
    key, model = (json.dumps(word, ensure_ascii=False) for word in (alias, target.model))
    bare = alias.isascii() and alias.replace("-", "").replace("_", "").isalnum()
    written = model
    if target.adapter is not None:
        adapter = json.dumps(target.adapter, ensure_ascii=False)
        written = f"{{ model = {model}, adapter = {adapter} }}"
    return f"{alias if bare else key} = {written}\n"


def _resolved(path: Path) -> Path:
    """Return the target of symbolic links: the file may be kept in a dotfiles repository.

    Raises
    ------
    OSError
        For a loop of links.
    """
    with contextlib.suppress(FileNotFoundError):
        path.stat()
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def _locked(path: Path, patience: float) -> Iterator[None]:
    """Hold the file's lock; the system releases it when a process dies.

    Raises
    ------
    TimeoutError
    """
    from filelock import FileLock, SoftFileLock

    lock_path = path.with_name(f".{path.name}.lock")
    lock: FileLock | SoftFileLock = FileLock(lock_path, timeout=patience)
    try:
        lock.acquire()
    except NotImplementedError:  # a file system without such locks
        lock = SoftFileLock(lock_path, timeout=patience)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _replace(path: Path, text: str) -> None:
    """Replace a file atomically: readers see the old or the new text, even after a crash."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    # A new file gets the umask's mode; a replaced one keeps its mode.
    handle = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            with contextlib.suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            file.write(text)
            file.flush()
            os.fsync(handle)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not supported by every file system
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _reason(error: Exception) -> str:
    return shown(getattr(error, "strerror", None) or str(error), 200).rstrip(".")
