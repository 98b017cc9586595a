"""What people pass to public functions: refused in one line that names the argument."""

from __future__ import annotations

import os
import re
from typing import Any

from mlx_magic.errors import RequestError
from mlx_magic.formatting import shown

# A name on disk that is no UTF-8 comes from Python with U+DC80 to U+DCFF in it.
_NO_NAME = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
_NUMPY = ("numpy.bool", "numpy.bool_")


def short_repr(value: object, most: int = 80) -> str:
    """Return the repr of any value as one short line; its type if the repr fails.

    Not every value has one: an int of 5,000 digits raises ValueError.
    """
    try:
        if isinstance(value, str) and len(value) > 4 * most:
            value = value[: 2 * most] + value[-2 * most :]
        return shown(repr(value), most)
    except Exception:
        return f"a value of type {shown(type(value).__name__, 40)}"


def text(argument: str, value: object) -> str:
    """Return a text that a model can read.

    Raises
    ------
    RequestError
        It is no str, or has half of a surrogate pair: no tokenizer takes that.
    """
    if not isinstance(value, str):
        raise RequestError(f"{argument} is {short_repr(value)}: use a str.", option=argument)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{argument} has {value[error.start]!a} at position {error.start}, which is no "
            "character: take it out, or read the text as UTF-8.",
            option=argument,
        ) from None
    return value


def name(argument: str, value: object) -> str:
    """Return the name of a model or a folder, given as a str or a path.

    Raises
    ------
    RequestError
        It is neither, is empty, or can be the name of nothing on disk.
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
    if _NO_NAME.search(found):
        raise RequestError(
            f"{argument} is {short_repr(found)}: a name cannot have a zero byte or half of a "
            "surrogate pair.",
            option=argument,
        )
    return found


def flag(argument: str, value: object) -> bool:
    """Return True or False, or refuse what is neither: ``"no"`` would count as True.

    Raises
    ------
    RequestError
    """
    # NumPy's count too; it need not be imported for that.
    if isinstance(value, bool) or f"{type(value).__module__}.{type(value).__name__}" in _NUMPY:
        return bool(value)
    raise RequestError(f"{argument} is {short_repr(value)}: use True or False.", option=argument)


def function(argument: str, value: Any) -> Any:
    """Return what can be called, or None.

    Raises
    ------
    RequestError
    """
    if value is None or callable(value):
        return value
    raise RequestError(f"{argument} is {short_repr(value)}: use a function.", option=argument)
