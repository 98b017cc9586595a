"""Finding the JSON in an answer."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

MOST_TRIES = 200
"""Maximum number of brackets, and of fences, that are tried."""

_FENCE = re.compile(r"```[ \t]*([A-Za-z0-9]*)[ \t]*\n?")
_OPENING = re.compile(r"^[ \t]*([\[{])", re.MULTILINE)
_REST_OF_LINE = re.compile(r"[^\n]*")
_PARTS = re.compile(r'"(?:\\.|[^"\\])*"|[\[\]{}]', re.DOTALL)

Outcome = tuple[Any, str | None]
"""A value and None, or None and a one-line error."""


def parse_json(text: str) -> Outcome:
    """Return the JSON value that an answer is or has.

    The answer as a whole; else its last code fence that holds JSON; else the last complete object
    or array that stands by itself on its lines. A bracket within a sentence, such as a citation,
    is no data. JSON must be strict (no NaN, no comments). If the last candidate is broken or cut
    off, that is an error: an earlier one may be a draft. No value from inside a broken value is
    returned.

    Returns
    -------
    tuple
        The value and None, or None and a one-line error.
    """
    value, end, error = _decode(text, 0)
    if error is None:
        if not text[end:].strip():
            return value, None
        error = _located("Extra data", text, end)
    found, outside = _in_fences(text)
    if found is None:
        found = _on_own_lines(outside)
    if found is not None:
        return found
    return None, error if text.strip() else "the answer is empty"


def _in_fences(text: str) -> tuple[Outcome | None, str]:
    """Return the outcome of the last fence that holds JSON, and the text outside of all fences."""
    last: Outcome | None = None
    outside: list[str] = []
    at = 0
    for _ in range(MOST_TRIES):
        fence = _FENCE.search(text, at)
        if fence is None:
            break
        outside.append(text[at : fence.start()])
        begin, label = fence.end(), fence.group(1).lower()
        value, end, error = _decode(text, begin)
        closing = text.find("```", end if error is None else begin)
        close = len(text) if closing < 0 else closing
        if error is None and text[end:close].strip():
            error = _located("Extra data", text, end)
        if label == "json" or (not label and text[begin:close].lstrip()[:1] in ("{", "[")):
            last = (None, error) if error is not None else (value, None)
        at = min(close + 3, len(text))
        # Positions stay, for the messages of errors.
        outside.append("\n".join(" " * len(line) for line in text[fence.start() : at].split("\n")))
    return last, "".join([*outside, text[at:]])


def _on_own_lines(text: str) -> Outcome | None:
    """Return the outcome of the last object or array that stands by itself on its lines."""
    last: Outcome | None = None
    at = 0
    for _ in range(MOST_TRIES):
        opening = _OPENING.search(text, at)
        if opening is None:
            return last
        start = opening.start(1)
        value, end, error = _decode(text, start)
        if error is not None:
            closed = _closing(text, start)
            if closed is None:
                # Cut off, or prose with an open bracket: what follows may be inside of it.
                return None, error
            end = closed
        alone = not _rest_of_line(text, end).strip()
        if alone and (error is None or text[start] == "{"):
            last = (None, error) if error is not None else (value, None)
        at = end + len(_rest_of_line(text, end))
    return None, f"more than {MOST_TRIES} brackets, of which none was taken"


def _rest_of_line(text: str, position: int) -> str:
    found = _REST_OF_LINE.match(text, position)
    return found.group() if found is not None else ""


def _closing(text: str, start: int) -> int | None:
    """Return the position after the bracket that closes the one at `start`, or None."""
    depth = 0
    for part in _PARTS.finditer(text, start):
        if part.group() in "[{":
            depth += 1
        elif part.group() in "]}":
            depth -= 1
            if depth == 0:
                return part.end()
    return None


def _decode(text: str, start: int) -> tuple[Any, int, str | None]:
    """Decode one value from `start`; return it, its end position, and an error or None."""
    while start < len(text) and text[start] in " \t\r\n\ufeff":
        start += 1
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return None, start, _located(error.msg, text, error.pos)
    except RecursionError:
        return None, start, _located("Nested too deeply", text, start)
    except ValueError as error:  # NaN and Infinity, or a number with thousands of digits
        return None, start, _located(str(error).partition(";")[0], text, start)
    return value, end, None


def _located(message: str, text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return f"{message}: line {line} column {column}"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
