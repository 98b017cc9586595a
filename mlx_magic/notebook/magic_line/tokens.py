"""Tokenizer of a magic's line; expressions and quoted names are one token each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.expressions import one_line

CLOSERS = {"(": ")", "[": "]", "{": "}"}
_QUOTES = "\"'"
_ORDINARY = re.compile(r"[^\s\"'\\()\[\]{}]+")


@dataclass(frozen=True, slots=True)
class Token:
    """One word of a magic's line.

    Attributes
    ----------
    raw : str
        As it was typed.
    text : str
        Without quotes and backslashes outside of brackets, as in a shell.
    quoted : bool
        Whether the whole word is quoted; it is then a string, never an expression or a flag.
    """

    raw: str
    text: str
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Fragment:
    """The unfinished word before the cursor.

    Attributes
    ----------
    raw : str
        As it was typed so far.
    text : str
        Without quotes, as in `Token`.
    quote : str
        The quote that is still open, or ``""``.
    depth : int
        Brackets that are still open.
    """

    raw: str = ""
    text: str = ""
    quote: str = ""
    depth: int = 0


def split_line(line: str) -> list[Token]:
    """Split a line at spaces that are not inside quotes or brackets.

    If brackets do not balance (``--system "nice" :)``), they are ordinary characters.
    Quotes inside brackets are kept: ``df['a b'][3]`` is one word, as typed.

    Raises
    ------
    RequestError
        If a quote is not closed.
    """
    for brackets in (True, False):
        scan = _Scanner(line, brackets=brackets)
        if scan.balanced:
            return scan.tokens
    raise RequestError(f"A quote is not closed: {one_line(line, 60)}")


def split_unfinished(line: str) -> tuple[list[Token], Fragment]:
    """Split the text before the cursor into complete words and the one being typed."""
    scan = _Scanner(line, brackets=True)
    if scan.stray_closer:
        scan = _Scanner(line, brackets=False)
    return scan.tokens_before_last, scan.fragment


def quote(name: str) -> str:
    """Return `name`, quoted if needed, so that `split_line` reads it as one word."""
    if name and re.fullmatch(r"[^\s\"'\\()\[\]{}*?]+", name) and not name.startswith("-"):
        return name
    if "'" not in name:
        return f"'{name}'"
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Scanner:
    """One pass over a line, with the state of the current word."""

    def __init__(self, line: str, *, brackets: bool) -> None:
        self.tokens: list[Token] = []
        self.stray_closer = False
        self._brackets = brackets
        self._start: int | None = None
        self._quote = ""
        self._expected: list[str] = []
        self._text: list[str] = []
        self._only_quoted = True
        self._line = line
        self._read()

    @property
    def balanced(self) -> bool:
        return not (self._quote or self._expected or self.stray_closer)

    @property
    def tokens_before_last(self) -> list[Token]:
        return self.tokens if self._start is None else self.tokens[:-1]

    @property
    def fragment(self) -> Fragment:
        if self._start is None:
            return Fragment()
        raw = self._line[self._start :]
        return Fragment(raw, "".join(self._text), self._quote, len(self._expected))

    def _read(self) -> None:
        at = 0
        while at < len(self._line):
            if self._line[at].isspace() and not self._quote and not self._expected:
                self._finish(at)
                self._start = None
                at += 1
                continue
            if self._start is None:
                self._start, self._text, self._only_quoted = at, [], True
            ordinary = None if self._quote else _ORDINARY.match(self._line, at)
            if ordinary is not None:
                self._only_quoted = False
                self._text.append(ordinary[0])
                at = ordinary.end()
                continue
            at += self._inside_quote(at) if self._quote else self._outside_quote(at)
        self._finish(len(self._line))

    def _finish(self, end: int) -> None:
        if self._start is not None:
            raw = self._line[self._start : end]
            self.tokens.append(Token(raw, "".join(self._text), self._only_quoted))

    def _inside_quote(self, at: int) -> int:
        """Read one character (two for an escape) of a quoted part; return the number read."""
        char, following = self._line[at], self._line[at + 1 : at + 2]
        if self._expected:  # code inside brackets keeps its quotes and Python's escapes
            pair = char == "\\" and following != ""
            self._text.append(char + following if pair else char)
        else:
            pair = char == "\\" and self._quote == '"' and following in ('"', "\\")
            if pair:
                self._text.append(following)
            elif char != self._quote:
                self._text.append(char)
        if char == self._quote:
            self._quote = ""
        return 2 if pair else 1

    def _outside_quote(self, at: int) -> int:
        char, following = self._line[at], self._line[at + 1 : at + 2]
        if char in _QUOTES:
            self._quote = char
            if self._expected:
                self._text.append(char)
            return 1
        self._only_quoted = False
        if char == "\\" and following and not self._expected:
            self._text.append(following)
            return 2
        self._text.append(char)
        if self._brackets:
            if char in CLOSERS:
                self._expected.append(CLOSERS[char])
            elif char in ")]}" and (not self._expected or self._expected.pop() != char):
                self.stray_closer = True
        return 1
