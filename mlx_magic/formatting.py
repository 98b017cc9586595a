"""Text that a stranger wrote, made fit for a terminal, a table or an error of one line."""

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
