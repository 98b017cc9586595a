"""The progress of a map on one line of a terminal."""

from __future__ import annotations

import sys

from mlx_magic.data.mapping.result import MapProgress
from mlx_magic.data.mapping.run import MapTask
from mlx_magic.engine.download_rate import duration
from mlx_magic.notebook.display import sanitize, terminal
from mlx_magic.notebook.display.phase_line import phase_line

_BAR = 20


def progress_words(state: MapProgress) -> str:
    """Return done, rate, time left and failures, as one line."""
    total = "" if state.total is None else f" of {state.total:,}"
    parts = [f"{state.done:,}{total}"]
    if state.rate:
        parts.append(f"{state.rate:.3g}/s" if state.rate < 100 else f"{state.rate:,.0f}/s")
    if state.left is not None and state.total is not None and state.done < state.total:
        parts.append(f"{duration(state.left)} left")
    if state.reused:
        parts.append(f"{state.reused:,} from the journal")
    if state.failed:
        parts.append(f"{state.failed:,} error{'s' * (state.failed != 1)}")
    if state.paused:
        parts.append("paused")
    return " · ".join(parts)


class TerminalLine:
    """Rewrites one line on standard error, as tqdm does; nothing if that is no terminal."""

    def __init__(self, task: MapTask) -> None:
        self._task = task
        self._shown = ""

    def show(self) -> None:
        """Do nothing: `update` writes."""

    def update(self) -> None:
        """Write the line anew, if it has changed."""
        self._write(self._line())

    def leave(self, *, alone: bool) -> None:
        """Write the last state, and end the line."""
        self._write(self._line())
        if self._shown:
            terminal.write("\n", sys.stderr)

    def close(self) -> None:
        """Do nothing: there are no widgets."""

    def _line(self) -> str:
        state = self._task.state
        waiting = self._task.waiting_for
        if waiting is not None and waiting.phase in ("queued", "downloading", "loading"):
            return phase_line(waiting)
        share = state.done / state.total if state.total else 0.0
        bar = "#" * round(_BAR * share)
        return f"[{bar:<{_BAR}}] {progress_words(state)}" if state.total else progress_words(state)

    def _write(self, line: str) -> None:
        if line != self._shown and sys.stderr is not None and sys.stderr.isatty():
            terminal.write(f"\r\x1b[K{sanitize.to_plain(line)}", sys.stderr)
            self._shown = line
