"""Turning ``%%vision`` at the top of a cell into a cell that awaits."""

from __future__ import annotations

import re
from typing import Any

# What IPython makes of `%%vision …`, and of a `%vision …` that takes its time, as a statement of
# its own.
_CALL = re.compile(r"get_ipython\(\)\.run_(?:cell|line)_magic\('vision', ")
_CELL = re.compile(r"get_ipython\(\)\.run_cell_magic\('vision', ")
_LINE = re.compile(r"get_ipython\(\)\.run_line_magic\('vision', '\s*(?:load|unload|list|models)\b")
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
        if self.nested or not self._can_await():
            return lines
        # Where nothing comes before, the cell has shown nothing that clearing could take.
        code = [i for i, line in enumerate(lines) if line.strip() and line.lstrip()[0] != "#"]
        return [self._rewrite(line, first=[i] == code[:1]) for i, line in enumerate(lines)]

    def _can_await(self) -> bool:
        ipython = self._ipython
        return getattr(ipython, "kernel", None) is not None and bool(ipython.autoawait)

    def _rewrite(self, line: str, *, first: bool) -> str:
        for magic in (_CELL, _LINE):
            if magic.match(line):
                return _CALL.sub(_AWAITED + f"{first}, ", line, count=1)
        return line

    # IPython passes arguments by the callback's own signature.
    def _enter(self, info: Any = None) -> None:
        self._depth += 1

    def _leave(self, result: Any = None) -> None:
        # The cell that loaded the extension ends without having begun here.
        self._depth = max(0, self._depth - 1)
