"""Numbers, names and errors in words: for a terminal, a table or a message of one line."""

from __future__ import annotations

import re

_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colors, cursor movements
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links
    r"|\x1b[ -/]*[0-~]?"
)


def shown(text: str, most: int = 80) -> str:
    """Return one printable line: no control sequences, direction marks or line breaks.

    Parameters
    ----------
    text : str
    most : int
        Characters; of longer text the middle is left out.
    """
    if len(text) > 20 * most:
        text = text[: 10 * most] + text[-10 * most :]
    text = _ANSI.sub("", text)
    text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


_LABEL_LENGTH = 80


def megabytes(size: int) -> str:
    """Return a number of bytes as text, in the unit that reads best."""
    if size < 1_000:
        return f"{size} bytes"
    return f"{size / 1_000:.0f} KB" if size < 1_000_000 else f"{size / 1_000_000:.0f} MB"


def shorten(text: str, length: int = _LABEL_LENGTH) -> str:
    """Return `text` on one line, its middle left out where it is too long.

    What could break a line or rearrange it (controls, bidirectional marks) becomes ``?``.
    """
    line = "".join(char if char.isprintable() else "?" for char in text)
    if len(line) <= length:
        return line
    head = (length - 1) // 2
    return f"{line[:head]}…{line[len(line) - (length - 1 - head) :]}"


def reason(error: BaseException) -> str:
    """Return why something failed, as one short line."""
    # An OSError's own text repeats its number and the whole path.
    text = getattr(error, "strerror", None) or str(error)
    return shorten(text.strip().rstrip(".") or type(error).__name__, 120)


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def amount(size: int) -> str:
    """Return a number of bytes for a person: ``1.2 GB``, ``340 MB``, ``12 KB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            value = size / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{size} B"


def without_frames(error: Exception) -> Exception:
    """Take the frames off an exception and its causes: they would hold weights."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def again(error: Exception) -> Exception:
    """Return an error like this one: raised for several people, one would mix their frames."""
    twin = type(error).__new__(type(error), *error.args)
    # MemoryError's own makes nothing of them.
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error.__cause__
    return twin
