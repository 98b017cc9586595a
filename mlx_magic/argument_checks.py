"""Checks of arguments of public functions. Errors are one line that names the argument."""

from __future__ import annotations

import numbers
import os
import re
from typing import Any

from mlx_magic.errors import RequestError
from mlx_magic.formatting import shown

# U+DC80 to U+DCFF are allowed: Python decodes file names that are not UTF-8 to these.
NO_NAME = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
"""Characters that no file has in its name."""

_NUMPY = ("numpy.bool", "numpy.bool_")


def short_repr(value: object, most: int = 80) -> str:
    """Return the repr of a value as one short line; its type if the repr fails.

    ``repr`` of an int of 5,000 digits raises ValueError, for example.
    """
    try:
        if isinstance(value, str) and len(value) > 4 * most:
            value = value[: 2 * most] + value[-2 * most :]
        return shown(repr(value), most)
    except Exception:
        return f"a value of type {shown(type(value).__name__, 40)}"


def plain(value: Any) -> Any:
    """Return a NumPy number (or another Integral or Real) as an int or a float.

    NumPy's numbers have a limited range: sums of small ones overflow, and not all functions of
    the standard library take them. bool and values that are no numbers are returned unchanged.
    """
    if isinstance(value, bool):
        return value
    try:
        if isinstance(value, numbers.Integral):
            return int(value)
        if isinstance(value, numbers.Real):
            return float(value)
    # Foreign code, or a fraction that is too large: refused by the check of the option.
    except Exception:
        return value
    return value


def plain_flag(value: Any) -> Any:
    """Return NumPy's bool as a bool; other values unchanged. NumPy is not imported."""
    is_numpy = f"{type(value).__module__}.{type(value).__name__}" in _NUMPY
    return bool(value) if is_numpy else value


def text(argument: str, value: object) -> str:
    """Return a text that tokenizers accept, as a plain str.

    Raises
    ------
    RequestError
        The value is not a str, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise RequestError(f"{argument} is {short_repr(value)}: use a str.", option=argument)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{argument} has {value[error.start]!a} at position {error.start}, which is not "
            "a character: remove it, or read the text as UTF-8.",
            option=argument,
        ) from None
    return str.__str__(value)


def name(argument: str, value: object) -> str:
    """Return the name of a model or a folder, given as a str or a path.

    Raises
    ------
    RequestError
        The value is neither, is empty, or cannot be a name on disk.
    """
    try:
        found: object = os.fspath(value)  # type: ignore[call-overload]
    except Exception:
        found = None
    if not isinstance(found, str):
        raise RequestError(
            f"{argument} is {short_repr(value)}: use a str or a path.", option=argument
        )
    if not found.strip():
        raise RequestError(
            f"{argument} is empty: use an alias, a folder or a Hub repository.", option=argument
        )
    if NO_NAME.search(found):
        raise RequestError(
            f"{argument} is {short_repr(found)}: a name cannot have a zero byte or half of a "
            "surrogate pair.",
            option=argument,
        )
    return found


def flag(argument: str, value: object) -> bool:
    """Return a flag as a bool. Other values are refused: ``"no"`` would be true.

    Raises
    ------
    RequestError
    """
    value = plain_flag(value)
    if isinstance(value, bool):
        return value
    raise RequestError(f"{argument} is {short_repr(value)}: use True or False.", option=argument)


def function(argument: str, value: Any) -> Any:
    """Return a callable, or None.

    Raises
    ------
    RequestError
    """
    if value is None or callable(value):
        return value
    raise RequestError(f"{argument} is {short_repr(value)}: use a function.", option=argument)
