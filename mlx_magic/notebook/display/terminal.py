"""Writing to a terminal, whatever characters it knows, and whether there is one."""

from __future__ import annotations

import sys
from typing import TextIO


def write(text: str, file: TextIO | None = None) -> None:
    """Write a text; characters that the terminal's encoding lacks are written as escapes.

    Parameters
    ----------
    text : str
    file : TextIO, optional
        Standard output if left out. Without one, nothing is written.
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
    """Return a text as standard output can write it: for what IPython prints by itself.

    A kernel's own output takes UTF-8, which has everything but halves of surrogate pairs.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(line: str) -> None:
    """Write a line."""
    write(f"{line}\n")
