"""Output to a terminal of any encoding, or to none."""

from __future__ import annotations

import sys
from typing import TextIO


def write(text: str, file: TextIO | None = None) -> None:
    """Write text; characters that the encoding lacks are written as escapes.

    Parameters
    ----------
    text : str
    file : TextIO, optional
        Default: standard output. If there is none, nothing is written.
    """
    out = sys.stdout if file is None else file
    if out is None:
        return
    try:
        out.write(text)
    except UnicodeEncodeError as error:
        out.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
    out.flush()


def printable(text: str) -> str:
    """Return text with escapes for what standard output cannot encode; for IPython's own output.

    A kernel's output is UTF-8, which only lacks lone surrogates.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def say(line: str) -> None:
    """Write a line."""
    write(f"{line}\n")
