"""Values of the IMAGE arguments of a cell: files, globs, URLs or Python expressions."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_magic.errors import ImageError, ImageNotFoundError
from mlx_magic.images.globs import match_files
from mlx_magic.images.typed import lookalikes, pasted
from mlx_magic.notebook.magic_line.expressions import (
    Evaluate,
    describe,
    one_line,
    parse_expression,
    undefined_names,
)
from mlx_magic.notebook.magic_line.tokens import Token
from mlx_magic.user_folders import cwd, expanded

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
_WILDCARD = re.compile(r"[*?\[]")
_FILE_NAME = re.compile(r"[^\s\"'()\[\]{}]*(/[^\s\"'()\[\]{}]*|\.[A-Za-z]\w{0,4})$")


def image_values(
    tokens: Iterable[Token],
    namespace: Mapping[str, object],
    evaluate: Evaluate,
    base: Path | None = None,
) -> list[tuple[str, object]]:
    """Return a name and a value for each IMAGE argument; nothing is opened or fetched.

    An existing file takes precedence, then a URL or data URI, then a Python expression whose names
    are defined, then a folder or a glob. ``imgs[0]`` is an expression if ``imgs`` is defined, else
    a glob. A quoted word is never an expression.

    Parameters
    ----------
    tokens : iterable of Token
        From `parse_cell`.
    namespace : mapping
        The notebook's variables.
    evaluate : callable
        Evaluates an expression in them.
    base : Path, optional
        Folder of relative paths; by default the current one.

    Returns
    -------
    list of (str, object)
        The name to show, and the value for `open_images`: a Path as typed for what exists on
        disk, a str for a URL or for a glob that matches a file, else the expression's value.

    Raises
    ------
    ImageNotFoundError
        For a name that is neither a file nor a variable, or a glob that matches no file.
    ImageError
        For an expression that raises.
    """
    resolve = _Resolver(namespace, evaluate, base or cwd())
    return [resolve(token) for token in tokens]


@dataclass(frozen=True, slots=True)
class _Resolver:
    namespace: Mapping[str, object]
    evaluate: Evaluate
    base: Path

    def __call__(self, token: Token) -> tuple[str, object]:
        token = _without_braces(token)
        text = token.text
        path = self._path(text)
        folder = _safe_check(path.is_dir)
        if _safe_check(path.exists) and not folder:
            return one_line(text, 80), Path(text)
        inner = pasted.unwrapped(text)
        if _URL.match(inner) or pasted.looks_like_base64(inner):
            return one_line(inner, 80), inner
        same = self._same_looks(path)
        if len(same) == 1 and same[0].is_file():
            return one_line(text, 80), Path(text)
        tree = None if token.quoted else parse_expression(token.raw)
        unknown = undefined_names(tree, self.namespace) if tree else []
        if tree and not unknown:
            return one_line(token.raw, 80), self._value(token)
        if len(same) > 1:
            message = lookalikes.ambiguity(one_line(text, 80), same)
            raise ImageNotFoundError(message, source=one_line(text, 80))
        if folder or (_WILDCARD.search(text) and self._matches(text)):
            return one_line(text, 80), Path(text) if folder else text
        if unknown and not _FILE_NAME.fullmatch(text):
            is_name = unknown[0] == text
            what = (
                "not a variable, file or URL (quote names that contain spaces)"
                if is_name
                else f"name {unknown[0]!r} is not defined"
            )
            raise self._missing(token, what, unknown[0])
        kind = "no file matches" if _WILDCARD.search(text) else "no such file"
        raise self._missing(token, kind, text)

    def _path(self, text: str) -> Path:
        try:
            return self.base / expanded(text)
        except RuntimeError:  # ~user without a home folder
            return self.base / text

    def _same_looks(self, path: Path) -> list[Path]:
        """Return the paths that only differ from `path` in kinds of spaces or normal form."""
        try:
            return lookalikes.find(path)
        except (OSError, ValueError):
            return []

    def _matches(self, pattern: str) -> bool:
        try:
            pattern = str(expanded(pattern))
            # base is passed separately: its name may contain wildcards
            return next(match_files(pattern, self.base), None) is not None
        except ImageError:  # over the limit; opening the images reports it
            return True
        except (OSError, ValueError, RuntimeError):
            return False

    def _value(self, token: Token) -> object:
        try:
            return self.evaluate(token.raw)
        except Exception as error:
            # input.jpg is also an expression: an attribute of a builtin
            if isinstance(error, AttributeError) and _FILE_NAME.fullmatch(token.text):
                raise self._missing(token, "no such file", token.text) from error
            shown = one_line(token.raw, 60)
            raise ImageError(f"{shown}: {describe(error)}", source=shown) from error

    def _missing(self, token: Token, what: str, wanted: str) -> ImageNotFoundError:
        shown = one_line(token.text, 80)
        close = self._similar(wanted)
        hint = f"; did you mean {' or '.join(close)}?" if close else "."
        unseen = lookalikes.difference(close[0], wanted) if close else ""
        if unseen:
            hint += f" Its {unseen}."
        return ImageNotFoundError(f"{shown}: {what}{hint}", source=shown)

    def _similar(self, wanted: str) -> list[str]:
        """Return up to three files and variables similar to `wanted`, the most similar first."""
        folder, slash, name = wanted.rpartition("/")
        try:
            files = [entry.name for entry in self._path(folder or ".").iterdir()]
        except (OSError, ValueError):
            files = []
        candidates = dict.fromkeys(files, True)
        candidates |= {name: False for name in self.namespace if not name.startswith("_")}
        found = difflib.get_close_matches(name or wanted, sorted(candidates), n=3, cutoff=0.7)
        return [folder + slash + item if candidates[item] else item for item in found]


def _without_braces(token: Token) -> Token:
    """Read ``{img}`` as ``img``, as most magics write variables in braces."""
    if not token.quoted and token.raw.startswith("{"):
        tree = parse_expression(token.raw)
        if tree is not None and isinstance(tree.body, ast.Set) and len(tree.body.elts) == 1:
            inner = token.raw[1:-1].strip()
            return replace(token, raw=inner, text=inner)
    return token


def _safe_check(check: Callable[[], bool]) -> bool:
    """Return `check()`, or False for an invalid path (too long, or with a NUL)."""
    try:
        return check()
    except (OSError, ValueError):
        return False
