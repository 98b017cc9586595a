"""Prompt templates: ``{expression}`` is evaluated, ``{{`` is a literal brace."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import re
from collections.abc import Callable

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.expressions import Evaluate, describe, one_line, parse_expression
from mlx_magic.notebook.magic_line.tokens import CLOSERS

LONGEST_EXPRESSION = 2_000
"""Characters; longer text in braces stays as written."""

_CODE = re.compile(
    r"""'''.*?'''|\"\"\".*?\"\"\"          # strings, whose brackets do not count
      | '(?:\\.|[^'\\\n])*' | "(?:\\.|[^"\\\n])*"
      | [()\[\]{}'"\#]                     # brackets, and signs that only occur in an error
    """,
    re.VERBOSE | re.DOTALL,
)
_BRACES = re.compile(r"[{}]")


Note = Callable[[str], object]
"""Takes one line for the person who asks."""


def fill(prompt: str, evaluate: Evaluate, note: Note = lambda line: None) -> str:
    """Replace each ``{expression}`` of a prompt by the text of its value.

    Text in braces that is not a complete Python expression stays as written: ``{}``,
    ``{key: value}``, ``{"a": 1}``, ``{x:.2f}``, and also ``{...}``. ``{{`` becomes ``{``. ``}}``
    becomes ``}`` where it closes such a ``{{``, and stays two braces elsewhere. A function, a class
    or a module stays as written, too: its text is of no use to a model, and ``{max}`` was hardly
    meant as Python's function.

    Parameters
    ----------
    prompt : str
        The body of the cell.
    evaluate : callable
        Evaluates an expression in the notebook; called once for each, from left to right.
    note : callable
        Takes a line about each value that was not filled in.

    Raises
    ------
    RequestError
        If an expression raises.
    """
    parts: list[str] = []
    open_braces: list[str] = []  # "{" literal or "{{" escaped; the next "}" closes the last
    at = 0
    while (brace := _BRACES.search(prompt, at)) is not None:
        start = brace.start()
        parts.append(prompt[at:start])
        text, at = _brace(prompt, start, open_braces, evaluate, note)
        parts.append(text)
    parts.append(prompt[at:])
    return "".join(parts)


def escape(text: str) -> str:
    """Return `text` escaped, so that `fill` returns the original."""
    parts: list[str] = []
    depth = 0
    for char in text:
        if char == "{":
            depth += 1
        elif char == "}" and depth:
            depth -= 1
        else:
            parts.append(char)
            continue
        parts.append(char * 2)
    return "".join(parts)


def _brace(
    prompt: str, start: int, open_braces: list[str], evaluate: Evaluate, note: Note
) -> tuple[str, int]:
    """Return the replacement of the brace at `start`, and the position after it."""
    if prompt[start] == "}":
        escaped = bool(open_braces) and open_braces[-1] == "{{"
        if escaped and prompt.startswith("}}", start):
            open_braces.pop()
            return "}", start + 2
        if open_braces and not escaped:
            open_braces.pop()
        return "}", start + 1
    if prompt.startswith("{{", start):
        open_braces.append("{{")
        return "{", start + 2
    expression = _expression_at(prompt, start + 1)
    if expression is None:
        open_braces.append("{")
        return "{", start + 1
    return _value(expression, evaluate, note), start + 1 + len(expression) + 1


def _expression_at(prompt: str, start: int) -> str | None:
    """Return the valid expression between `start` and the closing brace, or None.

    The closing brace is the first one outside of strings and brackets.
    """
    end = min(len(prompt), start + LONGEST_EXPRESSION)
    expected: list[str] = []
    for part in _CODE.finditer(prompt, start, end):
        mark = part.group()
        if mark in CLOSERS:
            expected.append(CLOSERS[mark])
        elif mark == "}" and not expected:
            inner = prompt[start : part.start()]
            return inner if _is_expression(parse_expression(inner)) else None
        elif mark in ")]}":
            if not expected or expected.pop() != mark:
                return None
        elif len(mark) == 1:  # an unclosed quote, or a comment
            return None
    return None


def _is_expression(tree: ast.Expression | None) -> bool:
    """Whether it is an expression; ``...`` (Ellipsis) does not count."""
    if tree is None:
        return False
    return not (isinstance(tree.body, ast.Constant) and tree.body.value is ...)


def _value(expression: str, evaluate: Evaluate, note: Note) -> str:
    try:
        value = evaluate(expression.strip())
        kind = _kind_of_code(expression.strip(), value)
        if kind:
            note(f"{{{one_line(expression, 60)}}} is {kind}: it stays as written.")
            return f"{{{expression}}}"
        return str(value)
    except RequestError:
        raise
    except Exception as error:
        shown = one_line(expression, 60)
        raise RequestError(
            f"{{{shown}}}: {describe(error)}; write {{{{{shown}}}}} for a literal brace.",
            option="prompt",
        ) from error


def _kind_of_code(expression: str, value: object) -> str:
    """Return what a value is that has no text of its own, such as "a function"; else ``""``."""
    if expression.isidentifier() and getattr(builtins, expression, _MISSING) is value:
        return "a builtin of Python"
    kind = type(value)
    if kind.__module__ == "IPython.core.autocall":
        return "a command of IPython"
    if inspect.isclass(value):
        return "a class"
    if inspect.ismodule(value):
        return "a module"
    if inspect.isroutine(value) or isinstance(value, functools.partial) or kind.__name__ == "ufunc":
        return "a function"
    return ""


_MISSING = object()
