"""Text and progress of a running task, as both live views show them: in a cell and in the panel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlx_magic.engine.result import Phase
from mlx_magic.engine.task import Progress
from mlx_magic.notebook.display.phase_line import phase_line
from mlx_magic.notebook.display.throttle import Throttle

LONGEST_TAIL = 480
"""Characters after which a tail without a blank line is cut anyway.

Each update sends the whole tail: this limit keeps the total bytes sent linear in
the length of the answer.
"""


@dataclass(slots=True)
class Blocks:
    """Streamed text as finished blocks and a tail.

    A block ends at a blank line outside of a code fence, so that it can be
    rendered as Markdown by itself, or where the tail became too long.

    Attributes
    ----------
    finished : list of (str, bool)
        Text of each block, and whether it is complete (Markdown) or was cut (plain text).
    tail : str
    """

    finished: list[tuple[str, bool]] = field(default_factory=list)
    tail: str = ""
    _fence: bool = False
    _cut: bool = False

    def feed(self, text: str) -> None:
        """Append text."""
        self.tail += text
        while (end := self._end_of_block()) is not None:
            self._finish(end, whole=not self._cut)
            self._cut = False
        while len(self.tail) > LONGEST_TAIL:
            self._finish(_cut_position(self.tail), whole=False)
            # The next text continues a block that was cut.
            self._cut = True

    def _finish(self, end: int, *, whole: bool) -> None:
        block, self.tail = self.tail[:end], self.tail[end:]
        if block.count("```") % 2:
            self._fence = not self._fence
            whole = False
        if block.strip():
            self.finished.append((block, whole))

    def _end_of_block(self) -> int | None:
        position, fence = 0, self._fence
        while (end := self.tail.find("\n\n", position)) != -1:
            if self.tail.count("```", position, end) % 2:
                fence = not fence
            if not fence:
                return end + 2
            position = end + 2
        return None


def _cut_position(text: str) -> int:
    """Return the position after the last newline or space in the second half, or the limit."""
    for mark in ("\n", " "):
        position = text.rfind(mark, LONGEST_TAIL // 2, LONGEST_TAIL)
        if position != -1:
            return position + 1
    return LONGEST_TAIL


_COUNTED = 2_000
"""Maximum number of characters that count for the throttle: later text makes up for them."""

LINE_INTERVAL = 0.5
"""Seconds between two updates of progress within a phase."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What one update adds.

    Attributes
    ----------
    before : int
        Number of finished blocks before it.
    blocks : list of (str, bool)
        New finished blocks; see `Blocks.finished`.
    old_tail, tail : str
        The unfinished text before and after it.
    """

    before: int
    blocks: list[tuple[str, bool]]
    old_tail: str
    tail: str


class LiveText:
    """Decides what to send next of a growing text and of its progress.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    throttle : Throttle
    most : int
        Maximum number of characters that one update adds.
    line : str
        The status line that is shown at first.
    phase : Phase, optional
        The phase that is shown at first.

    Attributes
    ----------
    shown : int
        Characters that were sent.
    line : str
        The status line that was sent last.
    phase : Phase or None
        The phase that was shown last.
    throttle : Throttle
    """

    def __init__(
        self,
        clock: Callable[[], float],
        throttle: Throttle,
        *,
        most: int,
        line: str,
        phase: Phase | None = None,
    ) -> None:
        self.shown = 0
        self.line = line
        self.phase = phase
        self.throttle = throttle
        self._clock = clock
        self._most = most
        self._blocks = Blocks()
        self._next_line = 0.0

    @property
    def tail(self) -> str:
        """The text after the last finished block."""
        return self._blocks.tail

    def grow(self, text: str, tokens: int) -> Growth | None:
        """Return what to add to the page; None if nothing is new, or it is too early.

        Parameters
        ----------
        text : str
            The whole text so far.
        tokens : int
            Its number of tokens.
        """
        new = text[self.shown : self.shown + self._most]
        size = min(len(new), _COUNTED) + len(self._blocks.tail)
        if not new or not self.throttle.allows(size, tokens):
            return None
        # Advanced before it is sent, so that text is not added twice if sending fails.
        self.shown += len(new)
        old_tail, before = self._blocks.tail, len(self._blocks.finished)
        self._blocks.feed(new)
        return Growth(before, self._blocks.finished[before:], old_tail, self._blocks.tail)

    def restart(self) -> None:
        """Begin again with an empty text: what was sent was taken back."""
        self.shown = 0
        self._blocks = Blocks()

    def new_line(self, progress: Progress) -> str | None:
        """Return the status line if it has to be sent: a new phase at once, progress now and then.

        Not counted by the throttle: a long download must not use up the bytes of the text.
        """
        line = phase_line(progress)
        if line == self.line or (progress.phase == self.phase and not self.line_due()):
            return None
        self.phase = progress.phase
        return self.set_line(line)

    def line_due(self) -> bool:
        """Whether progress within a phase may be sent again."""
        return self._clock() >= self._next_line

    def set_line(self, line: str) -> str:
        """Record a status line as sent; return it."""
        self.line = line
        self._next_line = self._clock() + LINE_INTERVAL
        return line
