"""Turning ``%%vision`` at the top of a cell into a cell that awaits."""

from __future__ import annotations

import re
from typing import Any

# What IPython makes of `%%vision …` and of `%vision load …` as a statement of its own.
_CELL = re.compile(r"get_ipython\(\)\.run_cell_magic\('vision', ")
_LOAD = re.compile(r"get_ipython\(\)\.run_line_magic\('vision', '\s*load\b")
_AWAITED = "await get_ipython().magics_manager.registry['VisionMagics'].awaited("


class AwaitedCells:
    """An input transformer that rewrites the magic, at the top of a cell only.

    A plain cell blocks the kernel's loop and with it the Cancel button. Inside
    of another cell (``%%time``, ``%%capture``, code) nothing can be awaited:
    there the magic stays as it is and waits by blocking.

    Parameters
    ----------
    ipython : InteractiveShell
    """

    def __init__(self, ipython: Any) -> None:
        self._ipython = ipython
        self._depth = 0

    def install(self) -> None:
        """Begin to rewrite cells."""
        self._ipython.input_transformers_post.append(self.transform)
        self._ipython.events.register("pre_run_cell", self._enter)
        self._ipython.events.register("post_run_cell", self._leave)

    def uninstall(self) -> None:
        """Leave IPython as it was."""
        self._ipython.input_transformers_post.remove(self.transform)
        self._ipython.events.unregister("pre_run_cell", self._enter)
        self._ipython.events.unregister("post_run_cell", self._leave)

    @property
    def nested(self) -> bool:
        """Whether a cell is running now."""
        return self._depth > 0

    def transform(self, lines: list[str]) -> list[str]:
        """Rewrite the lines of one cell."""
        if self.nested or getattr(self._ipython, "kernel", None) is None:
            return lines
        return [self._rewritten(line) for line in lines]

    def _rewritten(self, line: str) -> str:
        # The kind tells the two apart: a line has no body.
        line = _CELL.sub(_AWAITED, line, count=1) if _CELL.match(line) else line
        if _LOAD.match(line):
            line = line.replace("get_ipython().run_line_magic('vision', ", _AWAITED, 1)
        return line

    # IPython passes arguments by the callback's own signature.
    def _enter(self, info: Any = None) -> None:
        self._depth += 1

    def _leave(self, result: Any = None) -> None:
        # The cell that loaded the extension ends without having begun here.
        self._depth = max(0, self._depth - 1)
