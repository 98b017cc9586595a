"""Streams a generation to the page, as small messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from mlx_magic.engine.task import Progress
from mlx_magic.notebook.display import render, sanitize
from mlx_magic.notebook.display.live_text import Growth, LiveText
from mlx_magic.notebook.display.throttle import Throttle
from mlx_magic.notebook.panel.state.conversation import Answer

LONGEST_SHOWN = 100_000
"""Maximum number of characters of an answer on the page; the result has all of them."""

_HEAD_START = 20_000
_BYTES_PER_TOKEN = 88
_OVERHEAD = 520


class AnswerMessages(Protocol):
    """Receives the messages of an answer."""

    def delta(self, turn: str, index: int, before: int, text: str, status: str = "") -> None:
        """Append plain text to the tail, which has `before` characters."""

    def blocks(self, turn: str, index: int, before: int, html: list[str], tail: str) -> None:
        """Append finished blocks to the `before` existing ones, and replace the tail."""

    def status(self, turn: str, index: int, status: str, fraction: float) -> None:
        """Show a phase and its progress, from 0 to 1 (-1: unknown)."""

    def thoughts(self, turn: str, index: int, before: int, text: str) -> None:
        """Append plain text to the thoughts, which have `before` characters."""

    def answer(self, turn: str, index: int, answer: dict[str, Any]) -> None:
        """Replace the whole state of an answer."""


class LiveAnswer:
    """The state of one answer on the page.

    Parameters
    ----------
    turn : str
        Id of its turn.
    index : int
        Its index among the turn's answers.
    answer : Answer
    out : AnswerMessages
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self,
        turn: str,
        index: int,
        answer: Answer,
        out: AnswerMessages,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.answer = answer
        self.turn = turn
        self.index = index
        self.saved = ""
        self.cell = ""
        self._out = out
        throttle = Throttle(
            clock, head_start=_HEAD_START, bytes_per_token=_BYTES_PER_TOKEN, overhead=_OVERHEAD
        )
        self._live = LiveText(clock, throttle, most=LONGEST_SHOWN, line="waiting …")
        self._html: list[str] = []
        self._thoughts = ""
        self._thoughts_read = 0
        self._fraction = -1.0

    def update(self) -> bool:
        """Send new text and progress, throttled by time and bytes.

        Returns
        -------
        bool
            Whether the answer has just ended; the caller then sends its whole state.
        """
        generation = self.answer.generation
        if generation is None or self.answer.state != "running":
            return False
        if generation.future.done():
            self._end()
            return True
        snapshot = generation.snapshot()
        self._show_phase(snapshot.progress)
        tokens, text = snapshot.completion_tokens, snapshot.text[:LONGEST_SHOWN]
        if len(text) < self._live.shown:
            self._take_text_back()
        # A page that missed a message requests the whole turn.
        growth = self._live.grow(text, tokens)
        if growth is not None:
            self._live.throttle.sent(*self._send_text(growth, self._token_status(tokens)))
        elif self._send_thoughts(snapshot.reasoning[:LONGEST_SHOWN], tokens):
            if not text and (status := self._token_status(tokens, doing="thinking")):
                self._out.status(self.turn, self.index, status, self._fraction)
        elif len(snapshot.text) > LONGEST_SHOWN == self._live.shown:
            self._show_progress(tokens)
        return False

    def state(self) -> dict[str, Any]:
        """Return the whole state, for a page that shows the answer for the first time."""
        answer, result = self.answer, self.answer.result
        return {
            "model": answer.model,
            "state": answer.state,
            "status": self._live.line if answer.state == "running" else "",
            "fraction": self._fraction,
            "blocks": list(self._html),
            "tail": self._tail() if answer.state == "running" else "",
            "thoughts": self._thoughts,
            "text": result.text[:LONGEST_SHOWN] if result else "",
            "cell": self.cell,
            "footer": _footer(answer),
            "error": sanitize.to_plain(answer.error),
            "saved": self.saved,
        }

    def _end(self) -> None:
        generation = self.answer.generation
        assert generation is not None
        error = generation.future.exception()
        if error is not None:
            self.answer.error = " ".join(str(error).split()) or type(error).__name__
        else:
            self.answer.result = generation.future.result()
        result = self.answer.result
        snapshot = generation.snapshot()
        text = result.text if result else snapshot.text
        thoughts = result.reasoning if result else snapshot.reasoning
        self._thoughts = sanitize.to_plain(thoughts[:LONGEST_SHOWN])
        shown = text[:LONGEST_SHOWN]
        self._html = [render.result_html(result, shown)] if result else _failed_html(shown)
        if result and (places := render.places_html(result)):
            self._html.insert(0, places)
        if result and result.complete and generation.request.schema is not None:
            table = render.data_html(text)
            if table is not None:
                self._html = [table]
                return
        if len(text) > LONGEST_SHOWN:
            self._html.append(
                f"<p><em>{len(text):,} characters: only the first {LONGEST_SHOWN:,} are shown; "
                "save the result as a variable to get all of them.</em></p>"
            )

    def _show_phase(self, progress: Progress) -> None:
        """Show a new phase at once, and progress within a phase twice a second."""
        if progress.phase == "decode" == self._live.phase:
            # The status comes with the text.
            return
        line = self._live.new_line(progress)
        if line is not None:
            self._fraction = progress.done / progress.total if progress.total > 0 else -1.0
            self._out.status(self.turn, self.index, line, self._fraction)

    def _send_thoughts(self, thoughts: str, tokens: int) -> bool:
        """Send new thoughts; return whether there were some."""
        new = thoughts[self._thoughts_read :]
        if not new or not self._live.throttle.allows(len(new), tokens):
            return False
        self._thoughts_read += len(new)
        before, text = len(self._thoughts), sanitize.to_plain(new)
        self._thoughts += text
        self._out.thoughts(self.turn, self.index, before, text)
        self._live.throttle.sent(len(text))
        return True

    def _take_text_back(self) -> None:
        """Remove all text: it has turned out to be thoughts."""
        self._live.restart()
        self._html = []
        self._out.answer(self.turn, self.index, self.state())

    def _token_status(self, tokens: int, remark: str = "", *, doing: str = "writing") -> str:
        """Return the status with the token count, at most twice a second; sent with the text."""
        if not self._live.line_due():
            return ""
        return self._live.set_line(f"{doing} · {tokens:,} tokens{remark}")

    def _show_progress(self, tokens: int) -> None:
        """Update the token count after the text has reached its limit on the page."""
        if not self._live.throttle.allows(100, tokens):
            return
        status = self._token_status(tokens, f" · the first {LONGEST_SHOWN:,} characters shown")
        if status:
            self._out.status(self.turn, self.index, status, self._fraction)
            self._live.throttle.sent(len(status))

    def _tail(self) -> str:
        return sanitize.to_plain(self._live.tail)

    def _send_text(self, growth: Growth, status: str) -> list[int]:
        """Send new text; return the bytes of each message."""
        tail = sanitize.to_plain(growth.old_tail)
        if growth.blocks:
            html = [_block(*block) for block in growth.blocks]
            before = len(self._html)
            self._html += html
            self._out.blocks(self.turn, self.index, before, html, self._tail())
            sizes = [sum(map(len, html)) + len(growth.tail)]
            if status:
                # If each update ends a block, no `delta` message would carry the status.
                self._out.status(self.turn, self.index, status, self._fraction)
                sizes.append(len(status))
            return sizes
        after = self._tail()
        if not after.startswith(tail):
            # A control sequence that arrived in two parts is removed once it is complete.
            self._out.blocks(self.turn, self.index, len(self._html), [], after)
            return [len(after)]
        self._out.delta(self.turn, self.index, len(tail), after[len(tail) :], status)
        return [len(after) - len(tail) + len(status)]


def _block(text: str, whole: bool) -> str:
    return sanitize.to_html(text) if whole else sanitize.preformatted(text.rstrip("\n"))


def _failed_html(text: str) -> list[str]:
    return [sanitize.preformatted(text)] if text else []


def _footer(answer: Answer) -> str:
    if answer.result is None:
        return ""
    line = render.usage_line(answer.result)
    ending = render.finish_words(answer.result)
    return f"{ending} · {line}" if ending else line
