"""Completions of a ``%%vision`` or ``%vision`` line, and their matcher in IPython's completer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)

from mlx_magic.notebook.magic_line.image_variables import IMAGE_SUFFIXES, image_variables
from mlx_magic.notebook.magic_line.options import CELL_OPTIONS, LINE_OPTIONS, MODEL_VERBS, Option
from mlx_magic.notebook.magic_line.tokens import Fragment, Token, quote, split_unfinished
from mlx_magic.user_folders import expanded

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


_MAGIC = re.compile(r"\s*%(%?)vision(?=\s)")
_NAME_AT_END = re.compile(r"(?<![\w.])[^\W\d]\w*$")
_AFTER_NAME = re.compile(r"[\w.)\]}\"']\s*$")


@dataclass(frozen=True, slots=True)
class Completion:
    """A possible completion.

    Attributes
    ----------
    text : str
        Replaces the text from `start` to the cursor.
    start : int
        Its position in the line; equal for all completions of one call.
    kind : {"option", "subcommand", "choice", "model", "path", "instance"}
        Shown in the front end's list.
    """

    text: str
    start: int
    kind: str


@dataclass(frozen=True, slots=True)
class _Sources:
    models: Callable[[], Iterable[str]]
    files: Callable[[str], Iterable[str]]
    names: Callable[[], Iterable[str]]


def complete(
    text_before_cursor: str,
    *,
    models: Callable[[], Iterable[str]],
    files: Callable[[str], Iterable[str]],
    names: Callable[[], Iterable[str]],
) -> list[Completion]:
    """Complete the line up to the cursor; ``[]`` if it is not a line of these magics.

    Parameters
    ----------
    text_before_cursor : str
        The line from its first character.
    models : callable
        Returns the aliases and ids of local models.
    files : callable
        Returns the entries of a folder, named as typed (``"photos/"``, ``""`` is the current
        one); names of folders end in a slash.
    names : callable
        Returns the notebook's variables, the most likely first.
    """
    magic = _MAGIC.match(text_before_cursor)
    if magic is None:
        return []
    sources = _Sources(models, files, names)
    tokens, fragment = split_unfinished(text_before_cursor[magic.end() :])
    end = len(text_before_cursor)
    if magic.group(1):
        return _after_flags(tokens, fragment, end, CELL_OPTIONS, sources, _images)
    if not tokens:
        return _matching(fragment.text, LINE_OPTIONS, end - len(fragment.raw), "subcommand")
    verb, *following = tokens
    complete_word = _line_words(verb.text, following)
    return _after_flags(
        following, fragment, end, LINE_OPTIONS.get(verb.text, ()), sources, complete_word
    )


_Completer = Callable[[Fragment, int, _Sources], list[Completion]]


def _after_flags(
    tokens: Sequence[Token],
    fragment: Fragment,
    end: int,
    options: Sequence[Option],
    sources: _Sources,
    complete_word: _Completer,
) -> list[Completion]:
    """Complete a flag or its value; `complete_word` completes any other word."""
    by_flag = {flag: option for option in options if option.available for flag in option.flags}
    given = {by_flag[flag].name for token in tokens if (flag := _flag(token)) in by_flag}
    start = end - len(fragment.raw)
    if any(token.raw == "--" for token in tokens):
        return complete_word(fragment, start, sources)
    previous = by_flag.get(tokens[-1].raw) if tokens else None
    if previous is not None and previous.metavar:
        return _values(previous, fragment, start, sources)
    if not fragment.raw.startswith("-"):
        return complete_word(fragment, start, sources)
    flag, equals, value = fragment.raw.partition("=")
    if equals:
        option = by_flag.get(flag)
        inner = Fragment(value, value.strip("\"'"), fragment.quote, fragment.depth)
        return _values(option, inner, end - len(value), sources) if option else []
    unused = [flag for flag, option in by_flag.items() if option.name not in given]
    return _matching(fragment.raw, unused, start, "option")


def _flag(token: Token) -> str:
    return "" if token.quoted else token.text.partition("=")[0]


def _matching(prefix: str, known: Iterable[str], start: int, kind: str) -> list[Completion]:
    return [Completion(word, start, kind) for word in known if word.startswith(prefix)]


def _values(option: Option, fragment: Fragment, start: int, sources: _Sources) -> list[Completion]:
    if "|" in option.metavar:
        return _matching(fragment.text, option.metavar.split("|"), start, "choice")
    if option.name == "adapter":
        return _paths(fragment, start, sources, frozenset())
    return _models(fragment, start, sources) if option.name == "model" else []


def _line_words(verb: str, following: Sequence[Token]) -> _Completer:
    """Return the completer of a command's positional words: one model, or none."""
    option_values = sum(token.raw in ("--as", "--adapter") for token in following[:-1])
    positional = sum(_flag(token)[:1] != "-" for token in following) - option_values
    takes_model = verb in (*MODEL_VERBS, "unload") and positional < 1
    return _models if takes_model else lambda fragment, start, sources: []


def _models(fragment: Fragment, start: int, sources: _Sources) -> list[Completion]:
    found = [
        Completion(quote(name), start, "model")
        for name in sources.models()
        if name.startswith(fragment.text)
    ]
    if fragment.text.startswith((".", "/", "~")):
        found += _paths(fragment, start, sources, frozenset())
    return found


def _images(fragment: Fragment, start: int, sources: _Sources) -> list[Completion]:
    if fragment.depth:
        return _names_in_code(fragment, start, sources)
    found: list[Completion] = []
    if not fragment.quote and (not fragment.raw or fragment.raw.isidentifier()):
        found = _names(fragment.raw, start, sources)
    return found + _paths(fragment, start, sources, IMAGE_SUFFIXES)


def _names(prefix: str, start: int, sources: _Sources) -> list[Completion]:
    known = [name for name in sources.names() if prefix.startswith("_") or name[:1] != "_"]
    return _matching(prefix, known, start, "instance")


def _names_in_code(fragment: Fragment, start: int, sources: _Sources) -> list[Completion]:
    """Complete a variable inside brackets; IPython completes attributes and keys."""
    name = _NAME_AT_END.search(fragment.raw)
    if fragment.quote or (name is None and _AFTER_NAME.search(fragment.raw)):
        return []
    prefix = name.group() if name else ""
    return _names(prefix, start + len(fragment.raw) - len(prefix), sources)


def _paths(
    fragment: Fragment, start: int, sources: _Sources, suffixes: frozenset[str]
) -> list[Completion]:
    """Complete folders, and files with one of `suffixes`; names with spaces are quoted."""
    folder, slash, prefix = fragment.text.rpartition("/")
    found = []
    for entry in sources.files(folder + slash):
        hidden = entry.startswith(".") and not prefix.startswith(".")
        wanted = entry.endswith("/") or _suffix(entry) in suffixes
        if entry.startswith(prefix) and wanted and not hidden:
            text = _quoted(folder + slash + entry, fragment)
            found.append(Completion(text, start, "path"))
    return found


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower()


def _quoted(path: str, fragment: Fragment) -> str:
    """Quote a path if needed; a folder's quote stays open, so that its entries can follow."""
    mark = fragment.raw[:1] if fragment.raw[:1] in ("'", '"') else ""
    written = mark + path + mark if mark and not set(path) & {mark, "\\"} else quote(path)
    closed = written[-1] in "\"'" and written != path
    return written[:-1] if closed and path.endswith("/") else written


IDENTIFIER = "mlx_magic.vision"
MOST_ENTRIES = 2_000
"""Maximum number of entries of a folder that are read."""

_PRIORITY = 1_000  # above all other matchers, so that ours suppresses them


def install(ip: InteractiveShell, models: Callable[[], Iterable[str]]) -> None:
    """Install the matcher in this shell; `models` returns the names of local models."""
    uninstall(ip)

    @context_matcher(priority=_PRIORITY, identifier=IDENTIFIER)  # type: ignore[untyped-decorator]
    def match_vision(context: CompletionContext) -> SimpleMatcherResult:
        before = line_of_magic(context.full_text, context.cursor_line, context.cursor_position)
        found = complete(before, models=models, files=list_folder, names=lambda: variables(ip))
        result = SimpleMatcherResult(
            completions=[SimpleCompletion(text=item.text, type=item.kind) for item in found],
            suppress=bool(found),
            ordered=True,
        )
        if found:
            result["matched_fragment"] = before[found[0].start :]
        return result

    ip.Completer.custom_matchers.append(match_vision)


def uninstall(ip: InteractiveShell) -> None:
    """Remove the matcher, if it is installed."""
    ip.Completer.custom_matchers[:] = [
        matcher
        for matcher in ip.Completer.custom_matchers
        if getattr(matcher, "matcher_identifier", None) != IDENTIFIER
    ]


def line_of_magic(cell: str, line: int, column: int) -> str:
    """Return the line up to the cursor if it may be a magic's line, else ``""``.

    ``%%vision`` must be the first line of a cell that is not blank. The lines below it are the
    prompt, in which nothing is a magic.
    """
    lines = cell.split("\n")
    before = lines[line][:column] if line < len(lines) else ""
    above = [text.strip() for text in lines[:line] if text.strip()]
    if above and (above[0].split()[0] == "%%vision" or before.lstrip().startswith("%%")):
        return ""
    return before


def list_folder(folder: str) -> list[str]:
    """Return the sorted names in a folder, folders with a slash; ``[]`` if it is unreadable."""
    names = []
    try:
        with os.scandir(expanded(folder or ".")) as entries:
            for _, entry in zip(range(MOST_ENTRIES), entries, strict=False):
                names.append(entry.name + "/" if entry.is_dir() else entry.name)
    except (OSError, ValueError, RuntimeError):  # not there, not allowed, no such ~user
        return []
    return sorted(names)


def variables(ip: InteractiveShell) -> list[str]:
    """Return the user's variables, those that hold images first."""
    hidden: Mapping[str, object] = ip.user_ns_hidden
    own = {
        name: value
        for name, value in list(ip.user_ns.items())
        if not isinstance(value, ModuleType) and not (name in hidden and hidden[name] is value)
    }
    images = {variable.name for variable in image_variables(own)}
    return sorted(own, key=lambda name: (name not in images, name))
