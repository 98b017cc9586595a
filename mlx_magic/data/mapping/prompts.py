"""Prompts with ``{column}``, which each row fills with its own value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_magic.argument_checks import short_repr
from mlx_magic.argument_checks import text as require_text
from mlx_magic.errors import RequestError
from mlx_magic.formatting import shown

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}\n]{1,200})\}")


@dataclass(frozen=True, slots=True)
class Column:
    """The place of a column's value in a prompt."""

    name: str


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A prompt in parts.

    Attributes
    ----------
    parts : tuple of (str or Column)
    """

    parts: tuple[str | Column, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names."""
        return tuple(part.name for part in self.parts if isinstance(part, Column))

    def fill(self, columns: Mapping[str, Any]) -> str:
        """Return the prompt of one row.

        Raises
        ------
        RequestError
            The row has no value in a column, or none that a prompt can hold.
        """
        return "".join(
            part if isinstance(part, str) else _value(part.name, columns) for part in self.parts
        )


def parse(prompt: object, columns: Collection[str]) -> PromptTemplate:
    """Parse a prompt: ``{name}`` is a column, ``{{`` and ``}}`` are braces.

    Without columns the prompt stays as it is written. Braces around what is no name, such as
    ``{"a": 1}``, stay, too.

    Raises
    ------
    RequestError
        A name in braces is not one of the columns, or the prompt is no text.
    """
    text = require_text("prompt", prompt)
    if not text.strip():
        raise RequestError("The prompt is empty: write a question.", option="prompt")
    if not columns:
        return PromptTemplate((text,))
    parts: list[str | Column] = []
    at = 0
    for match in _BRACES.finditer(text):
        parts.append(text[at : match.start()])
        at = match.end()
        name = match[1]
        if name is None:
            parts.append(match[0][0])
        elif name in columns:
            parts.append(Column(name))
        elif name.isidentifier():
            raise _unknown(name, columns)
        else:
            parts.append(match[0])
    parts.append(text[at:])
    return PromptTemplate(_joined(parts))


def _joined(parts: list[str | Column]) -> tuple[str | Column, ...]:
    joined: list[str | Column] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined)


def _unknown(name: str, columns: Collection[str]) -> RequestError:
    close = difflib.get_close_matches(name, list(columns), n=1)
    known = ", ".join(shown(column, 40) for column in list(columns)[:8])
    hint = f"did you mean {{{close[0]}}}?" if close else f"there are {known}."
    return RequestError(
        f"{{{shown(name, 60)}}} is not a column: {hint} Write {{{{{shown(name, 60)}}}}} for "
        "braces.",
        option="prompt",
    )


def _value(name: str, columns: Mapping[str, Any]) -> str:
    label = shown(name, 60)
    if name not in columns or _is_missing(columns[name]):
        raise RequestError(f"This row has no value in the column {label}.", option="prompt")
    value = columns[name]
    if not isinstance(value, str):
        try:
            value = str(value)
        except Exception:
            raise RequestError(
                f"{label} is {short_repr(value)}, which has no text.", option="prompt"
            ) from None
    return require_text(f"the column {label}", value)


def _is_missing(value: Any) -> bool:
    """Whether it is None, NaN, NaT or pandas' NA, without importing pandas."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    try:
        return bool(value != value)  # NaN
    # An array has no truth value.
    except Exception:
        return False
