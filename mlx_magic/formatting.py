"""Numbers, names and errors as short text for terminals, tables and one-line messages."""

from __future__ import annotations

import re

_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colors, cursor movements
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links
    r"|\x1b[ -/]*[0-~]?"
)


def shown(text: str, most: int = 80) -> str:
    """Return text as one printable line, without what a terminal would interpret.

    Control sequences and direction marks are removed; line breaks and runs of spaces become one
    space. For text in which a name need not be exact; see `short_label`.

    Parameters
    ----------
    text : str
    most : int
        Maximum length in characters. The middle of longer text is left out.
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


def short_label(text: str, length: int = 80) -> str:
    """Return a name or path as one line of at most `length` characters.

    Unlike `shown`, every character keeps its place: each unprintable one (line breaks, control
    characters, bidirectional marks) becomes ``?``, and spaces stay, so that a person can see
    where a name differs from the expected one. The middle of longer text is left out.
    """
    line = "".join(char if char.isprintable() else "?" for char in text)
    if len(line) <= length:
        return line
    head = (length - 1) // 2
    return f"{line[:head]}…{line[len(line) - (length - 1 - head) :]}"


def reason(error: BaseException) -> str:
    """Return the reason of a failure as one line of at most 120 characters, without a period."""
    # str() of an OSError repeats its number and the whole path.
    text = getattr(error, "strerror", None) or str(error)
    return short_label(text.strip().rstrip(".") or type(error).__name__, 120)


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def amount(size: int) -> str:
    """Return a number of bytes as text: ``1.2 GB``, ``340 MB``, ``12 KB``, ``512 B``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            value = size / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{size} B"


def without_frames(error: Exception) -> Exception:
    """Remove the tracebacks of an exception and its causes: their frames keep weights alive."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def copy_error(error: Exception) -> Exception:
    """Return a copy of an error, without its traceback.

    One exception object raised in several waiting tasks would mix their tracebacks.
    """
    copied = type(error).__new__(type(error), *error.args)
    # MemoryError.__new__ ignores its arguments.
    copied.args = error.args
    copied.__dict__.update(error.__dict__)
    copied.__cause__ = error.__cause__
    return copied
