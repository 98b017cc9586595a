"""Input transformer: a cell that begins with ``%%vision`` becomes a cell that awaits."""

from __future__ import annotations

import re
from typing import Any

# IPython's own rewriting of `%%vision …`, and of a `%vision …` that may wait, as a statement.
_CALL = re.compile(r"get_ipython\(\)\.run_(?:cell|line)_magic\('vision', ")
_CELL = re.compile(r"get_ipython\(\)\.run_cell_magic\('vision', ")
_LINE = re.compile(r"get_ipython\(\)\.run_line_magic\('vision', '\s*(?:load|unload|list|models)\b")
# A `%vision …` with a value to display, as a statement of its own, perhaps within a block.
_STATEMENT = re.compile(
    r"(\s*)get_ipython\(\)\.run_line_magic\('vision', "
    r"'\s*(?:(?:list|models|status|panel|journal)\b.*)?'\)(\s*)$"
)
# IPython refuses a cell magic without a body before the magic is asked: `%%vision --help`.
_NO_BODY = re.compile(r"(get_ipython\(\)\.run_cell_magic\('vision', .*), ''\)(\s*)$")
_DISPLAYED = "get_ipython().magics_manager.registry['VisionMagics'].displayed("
_AWAITED = "await get_ipython().magics_manager.registry['VisionMagics'].awaited("


class AwaitedCells:
    """Rewrites the magic to an awaited call, only at the top of a cell.

    A cell that does not await blocks the kernel's event loop, and so the Cancel button. Inside
    another cell (``%%time``, ``%%capture``, code) nothing can be awaited: there the magic is not
    rewritten, and blocks.

    Parameters
    ----------
    ipython : InteractiveShell
    """

    def __init__(self, ipython: Any) -> None:
        self._ipython = ipython
        self._depth = 0

    def install(self) -> None:
        """Register the transformer and the cell events."""
        self._ipython.input_transformers_post.append(self.transform)
        self._ipython.events.register("pre_run_cell", self._enter)
        self._ipython.events.register("post_run_cell", self._leave)

    def uninstall(self) -> None:
        """Undo `install`."""
        self._ipython.input_transformers_post.remove(self.transform)
        self._ipython.events.unregister("pre_run_cell", self._enter)
        self._ipython.events.unregister("post_run_cell", self._leave)

    @property
    def nested(self) -> bool:
        """Whether a cell is running."""
        return self._depth > 0

    def transform(self, lines: list[str]) -> list[str]:
        """Rewrite the lines of one cell."""
        code = [i for i, line in enumerate(lines) if line.strip() and line.lstrip()[0] != "#"]
        awaits = not self.nested and self._can_await()
        rewritten = []
        for i, line in enumerate(lines):
            if awaits:  # if it is the first statement, the cell has no earlier output to clear
                new = self._rewrite(line, first=[i] == code[:1])
            else:
                new = _NO_BODY.sub(r"\1, '\\n')\2", line)
            rewritten.append(self._display(line, new, last=[i] == code[-1:]))
        return rewritten

    @staticmethod
    def _display(line: str, rewritten: str, *, last: bool) -> str:
        """Let a line display its value: IPython displays that of a cell's last statement only."""
        statement = _STATEMENT.match(line)
        if statement is None or (last and not statement[1]):
            return rewritten
        call = rewritten.strip()
        return f"{statement[1]}{_DISPLAYED}{call}){statement[2]}"

    def _can_await(self) -> bool:
        ipython = self._ipython
        return getattr(ipython, "kernel", None) is not None and bool(ipython.autoawait)

    def _rewrite(self, line: str, *, first: bool) -> str:
        for magic in (_CELL, _LINE):
            if magic.match(line):
                return _CALL.sub(_AWAITED + f"{first}, ", line, count=1)
        return line

    # IPython passes as many arguments as the callback's signature has.
    def _enter(self, info: Any = None) -> None:
        self._depth += 1

    def _leave(self, result: Any = None) -> None:
        # `_enter` was not called for the cell that loaded the extension.
        self._depth = max(0, self._depth - 1)
