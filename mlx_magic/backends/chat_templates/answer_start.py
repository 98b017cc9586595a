"""Where the thoughts of an answer end, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_magic.backends.chat_templates.reasoning import ReasoningStream


class AnswerStart:
    """See `Thoughts` in `backends/grammars/matcher.py`.

    Parameters
    ----------
    stream : ReasoningStream
        Of this answer; a second one separates the text that is shown.
    detokenizer : Detokenizer
        See `backends/adapter.py`.
    encode : callable
        Takes a text, returns its tokens without special ones around it.
    """

    def __init__(
        self,
        stream: ReasoningStream,
        detokenizer: Any,
        encode: Callable[[str], list[int]],
    ) -> None:
        self._stream = stream
        self._detokenizer = detokenizer
        self._encode = encode

    @property
    def openings(self) -> list[list[int]]:
        """The tokens of each mark that may open thoughts now."""
        return [tokens for mark in self._stream.openings if (tokens := self._encode(mark))]

    def feed(self, token: int) -> None:
        """Process the next token."""
        self._detokenizer.add_token(token)
        self._stream.feed(self._detokenizer.last_segment, token)

    @property
    def ended(self) -> bool:
        """Whether the answer has begun."""
        return self._stream.answer_begun
