"""Choices in Python's own forms: a list of str, an Enum, a Literal."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from mlx_magic.argument_checks import short_repr
from mlx_magic.engine.request import MOST_CHOICES, Choices
from mlx_magic.errors import RequestError

_TYPES = "use a list of str, an Enum class, or a Literal type"


def read_choices(value: Any) -> Choices | None:
    """Return choices as a request takes them; None stays None.

    Parameters
    ----------
    value : object
        A list or another iterable of str or of members of an Enum; an Enum class, whose members
        are the choices; or a Literal type. Of a member the model is asked about its value, which
        is a str or an int.

    Returns
    -------
    Choices or None
        Its `values` are the members, or the values of the Literal.

    Raises
    ------
    RequestError
        The value is none of these, or there are less than two different choices.
    """
    if value is None or isinstance(value, Choices):
        return value
    # Types may have any metaclass, and iterables any code: what fails is no list of choices.
    try:
        members = _members(value)
        labels = [_label(member) for member in members]
    except RequestError:
        raise
    except Exception as error:
        raise _refused(value) from error
    return Choices(tuple(labels), tuple(members))


def _members(value: Any) -> list[Any]:
    if isinstance(value, enum.EnumMeta):
        return list(value)
    if get_origin(value) is Literal:
        return list(get_args(value))
    if isinstance(value, str | bytes | bytearray | Mapping | type):
        raise _refused(value)
    if not isinstance(value, Iterable) and not hasattr(value, "__getitem__"):
        raise _refused(value)
    # One more than may be, so that an endless iterator ends in an error.
    found = list(itertools.islice(value, MOST_CHOICES + 1))
    if isinstance(value, set | frozenset):
        # Their order differs from one process to the next.
        found.sort(key=str)
    for member in found:
        if not isinstance(member, str | enum.Enum):
            raise RequestError(
                f"choices has {short_repr(member)}, which is no text: {_TYPES}.", option="choices"
            )
    return [str.__str__(m) if type(m) is not str and _is_plain(m) else m for m in found]


def _is_plain(member: Any) -> bool:
    """Whether a member is a str of another type, such as NumPy's, but no member of an Enum."""
    return isinstance(member, str) and not isinstance(member, enum.Enum)


def _label(member: Any) -> str:
    """Return the text of a choice."""
    content = member.value if isinstance(member, enum.Enum) else member
    if isinstance(content, str):
        return str.__str__(content)
    if isinstance(content, int) and not isinstance(content, bool):
        return str(int(content))
    raise RequestError(
        f"choices has {short_repr(member)}, whose value is neither a str nor an int: {_TYPES} of "
        "these.",
        option="choices",
    )


def _refused(value: object) -> RequestError:
    return RequestError(f"choices is {short_repr(value)}: {_TYPES}.", option="choices")
