"""The whole values of a JSON text that was cut."""

from __future__ import annotations

import json
from typing import Any

_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


def whole_values(text: str) -> Any:
    """Return what is whole of a JSON object or array that was cut.

    Parameters
    ----------
    text : str

    Returns
    -------
    dict, list or None
        The fields, or the items, whose values have ended. None if the text begins neither.
    """
    start = _after_space(text, 0)
    if text[start : start + 1] == "{":
        return _fields(text, start + 1)
    if text[start : start + 1] == "[":
        return _items(text, start + 1)
    return None


def _fields(text: str, at: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while True:
        name, at = _value(text, _after_space(text, at))
        at = _after_space(text, at)
        if not isinstance(name, str) or text[at : at + 1] != ":":
            return found
        begin = _after_space(text, at + 1)
        value, at = _value(text, begin)
        if at == begin:
            return found
        found[name] = value
        at = _after_space(text, at)
        if text[at : at + 1] != ",":
            return found
        at += 1


def _items(text: str, at: int) -> list[Any]:
    found: list[Any] = []
    while True:
        begin = _after_space(text, at)
        value, at = _value(text, begin)
        if at == begin:
            return found
        found.append(value)
        at = _after_space(text, at)
        if text[at : at + 1] != ",":
            return found
        at += 1


def _value(text: str, at: int) -> tuple[Any, int]:
    """Return a value and the position after it; the same position if it has not ended."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, at
    # The digits of a number may go on.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (None, at) if is_number and end == len(text) else (value, end)


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at
