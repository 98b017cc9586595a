"""Tab completion of the magics' lines: a matcher for IPython's completer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)

from mlx_magic.notebook.magic_line.completions import complete
from mlx_magic.notebook.magic_line.image_variables import image_variables
from mlx_magic.user_folders import expanded

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

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
