"""Splits streamed text into finished blocks and a short unfinished tail."""

from __future__ import annotations

from dataclasses import dataclass, field

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
