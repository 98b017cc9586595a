"""A person's own aliases, in a TOML file that they may edit at any time."""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_magic.errors import RequestError
from mlx_magic.inference import strict_json
from mlx_magic.inference.request import DEMO
from mlx_magic.inference.shown import shown
from mlx_magic.inference.strict_json import Limits

NAME = "aliases.toml"
_LIMITS = Limits(2**20, 0)
_MOST_BRACKETS = 50
_LONG = re.compile(r"[0-9_]{400}")
_HEAD = """\
# Names for models, for every notebook: an alias and the folder or Hub repository it stands for.
# With an adapter: name = { model = "...", adapter = "folder" }
"""


@dataclass(frozen=True, slots=True)
class Target:
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


def default_path() -> Path:
    """Return where the file lies: $MLX_MAGIC_CONFIG, else ~/.config/mlx-magic (XDG), and its name.

    The variable names the folder.
    """
    own = os.environ.get("MLX_MAGIC_CONFIG")
    if own:
        return Path(own).expanduser() / NAME
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "mlx-magic" / NAME


class AliasFile:
    """Reads the file again whenever it has changed; safe from any thread.

    What cannot be understood is left out, and said in `problems`; it stays in the file.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._targets: Mapping[str, Target] = {}
        self._problems: tuple[str, ...] = ()

    @property
    def targets(self) -> Mapping[str, Target]:
        """Alias to what it stands for; of a file that is no TOML, as it was before that."""
        self._look()
        return self._targets

    @property
    def problems(self) -> tuple[str, ...]:
        """What of the file cannot be used, and why: a line each."""
        self._look()
        return self._problems

    def save(self, alias: str, target: Target) -> None:
        """Write an alias into the file, in its own line; the other lines stay as they are.

        Raises
        ------
        RequestError
            When the file cannot be read or written, or holds this alias in more than a line.
        """
        with self._lock:
            try:
                text = strict_json.text(self.path, _LIMITS) if self.path.exists() else _HEAD
                before = _parsed(text)
                changed = _with_line(text, alias, _line(alias, target))
                if _parsed(changed) != {**before, alias: _value(target)}:
                    raise RequestError(
                        f"{self.path} holds {alias!r} in several lines: change it there.",
                        option="save",
                    )
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _replace(self.path, changed)
            except (OSError, ValueError) as error:
                raise RequestError(
                    f"{self.path} cannot be changed ({_reason(error)}): mend it, then save again.",
                    option="save",
                ) from error

    def _look(self) -> None:
        """Read the file if it is another than the last time."""
        try:
            found = self.path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            seen = None
        with self._lock:
            if seen == self._seen:
                return
            self._seen = seen
            if seen is None:
                self._targets, self._problems = {}, ()
                return
            try:
                content = _parsed(strict_json.text(self.path, _LIMITS))
            except (OSError, ValueError) as error:
                self._problems = (f"{self.path} is not read: {_reason(error)}.",)
                return
            self._targets, self._problems = _understood(content, self.path)


def _parsed(text: str) -> dict[str, Any]:
    """Parse TOML whose lines are short: tomllib recurses at each bracket, and at no dot.

    Raises
    ------
    ValueError
    """
    for line in text.splitlines():
        if line.count("[") + line.count("{") > _MOST_BRACKETS or line.count(".") > 500:
            raise ValueError(f"a line has more than {_MOST_BRACKETS} brackets or 500 dots")
    if text.count("[") + text.count("{") > 20 * _MOST_BRACKETS * 10 or _LONG.search(text):
        raise ValueError("it has too many brackets, or a number of 400 digits")
    try:
        return tomllib.loads(text)
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deep") from error


def _understood(
    content: Mapping[str, Any], path: Path
) -> tuple[dict[str, Target], tuple[str, ...]]:
    targets: dict[str, Target] = {}
    problems: list[str] = []
    for alias, value in content.items():
        if not alias.strip() or "/" in alias or alias.startswith("-") or alias == DEMO:
            problems.append(f"{path}: {alias!r} cannot be an alias: no slash, and not {DEMO!r}.")
            continue
        match value:
            case str(model) if model.strip():
                targets[alias] = Target(model)
            case {"model": str(model), "adapter": str(adapter), **others} if not others:
                targets[alias] = Target(model, adapter)
            case {"model": str(model), **others} if not others:
                targets[alias] = Target(model)
            case _:
                problems.append(
                    f"{path}: {alias} is not understood: write {alias} = "
                    '"organisation/name", or { model = "...", adapter = "..." }.'
                )
    return targets, tuple(problems)


def _with_line(text: str, alias: str, line: str) -> str:
    """Return the text with this alias's line, in place of the one it has."""
    lines = text.splitlines(keepends=True)
    first_table = next((i for i, text in enumerate(lines) if text.startswith("[")), len(lines))
    at = next((i for i in range(first_table) if _key(lines[i]) == alias), None)
    if at is not None:
        lines[at] = line
    else:
        if first_table and not lines[first_table - 1].endswith("\n"):
            lines[first_table - 1] += "\n"
        lines.insert(first_table, line)
    return "".join(lines)


def _key(line: str) -> str | None:
    """Return the key that a line gives a value to, if it is a whole line of TOML."""
    try:
        found = tomllib.loads(line)
    except (ValueError, RecursionError):
        return None
    return next(iter(found), None)


def _value(target: Target) -> Any:
    if target.adapter is None:
        return target.model
    return {"model": target.model, "adapter": target.adapter}


def _line(alias: str, target: Target) -> str:
    # A JSON string is a TOML string, as long as nothing beyond its escapes is used.
    key, model = (json.dumps(word, ensure_ascii=False) for word in (alias, target.model))
    bare = alias.isascii() and alias.replace("-", "").replace("_", "").isalnum()
    written = model
    if target.adapter is not None:
        adapter = json.dumps(target.adapter, ensure_ascii=False)
        written = f"{{ model = {model}, adapter = {adapter} }}"
    return f"{alias if bare else key} = {written}\n"


def _replace(path: Path, text: str) -> None:
    """Write a file so that whoever reads it sees the old text or the new."""
    # A link stays one: people keep such files in a repository of their own.
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(path.stat().st_mode if path.exists() else 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _reason(error: Exception) -> str:
    return shown(getattr(error, "strerror", None) or str(error), 200).rstrip(".")
