"""Finding the JSON in an answer."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any, NoReturn

MOST_TRIES = 200
"""Maximum number of brackets, and of fences, that are tried."""

_FENCE = re.compile(r"```[A-Za-z]*[ \t]*\n")
_OPENING = re.compile(r"[\[{]")
_PARTS = re.compile(r'"(?:\\.|[^"\\])*"|[\[\]{}]', re.DOTALL)


def parse_json(text: str) -> tuple[Any, str | None]:
    """Return the JSON value in `text` and None, or None and a one-line error.

    Tried are the whole text, then each code fence, then the first object or array in prose. The
    JSON must be strict (no NaN, no comments). No value from inside a broken or truncated value
    is returned.
    """
    errors: list[str] = []
    starts = [(0, "")]
    starts += [(fence.end(), "```") for fence in islice(_FENCE.finditer(text), MOST_TRIES)]
    for start, closer in starts:
        value, end, error = _decode(text, start)
        if error is None:
            rest = text[end:].lstrip()
            if not rest or (closer and rest.startswith(closer)):
                return value, None
            error = _located("Extra data", text, end)
        errors.append(error)
    return _first_in_prose(text, errors)


def _first_in_prose(text: str, errors: list[str]) -> tuple[Any, str | None]:
    """Try each outermost bracket of the text; `errors` are of the whole text and the fences."""
    failed: str | None = None
    at: int | None = 0
    for _ in range(MOST_TRIES):
        if at is None or (opening := _OPENING.search(text, at)) is None:
            break
        value, _, error = _decode(text, opening.start())
        if error is None:
            return value, None
        failed = failed or error
        at = _closing(text, opening.start())
    if failed is not None:
        return None, failed
    return None, errors[-1] if text.strip() else "the answer is empty"


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
