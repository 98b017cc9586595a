"""Python expressions of the notebook: parsing, undefined names, errors in one line."""

from __future__ import annotations

import ast
import builtins
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_magic.errors import RequestError

Evaluate = Callable[[str], object]
"""Evaluates an expression in the notebook's namespace."""


@dataclass(frozen=True, slots=True)
class Expression:
    """The value of a flag that is still to be evaluated in the notebook.

    Attributes
    ----------
    text : str
    """

    text: str

    def value(self, flag: str, namespace: Mapping[str, object], evaluate: Evaluate) -> object:
        """Evaluate the expression.

        Parameters
        ----------
        flag : str
            For messages.
        namespace : mapping
            The notebook's variables.
        evaluate : callable

        Raises
        ------
        RequestError
            It is not a complete expression, reads a name that is not defined, or raises.
        """
        option = flag.lstrip("-")
        tree = parse_expression(self.text)
        if tree is None:
            raise RequestError(
                f"{flag} {one_line(self.text, 80)} is not a Python expression.", option=option
            )
        if unknown := undefined_names(tree, namespace):
            raise RequestError(f"{flag}: name {unknown[0]!r} is not defined.", option=option)
        try:
            return evaluate(self.text.strip())
        except Exception as error:
            raise RequestError(
                f"{flag} {one_line(self.text, 80)}: {describe(error)}", option=option
            ) from error


def parse_expression(text: str) -> ast.Expression | None:
    """Return the syntax tree of `text`, or None if it is not a complete expression."""
    try:
        with warnings.catch_warnings():  # "invalid escape sequence" is harmless in a prompt
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def undefined_names(tree: ast.Expression, namespace: Mapping[str, object]) -> list[str]:
    """Return the names that `tree` reads but neither `tree` nor the notebook defines."""
    bound: set[str] = set()
    read: dict[str, None] = {}  # in order
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                read[node.id] = None
            else:
                bound.add(node.id)
    return [
        name
        for name in read
        if name not in bound and name not in namespace and not hasattr(builtins, name)
    ]


def variables_in_scope(ipython: Any) -> dict[str, Any]:
    """Return the variables that the code sees which has called a magic.

    At the top of a cell they are the notebook's. In a function they are the function's, and
    those of the notebook that it does not hide: IPython's local scope.

    Parameters
    ----------
    ipython : InteractiveShell
    """
    notebook: dict[str, Any] = ipython.user_ns
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    if frame.f_locals is frame.f_globals or frame.f_locals is notebook:
        return notebook
    return {**notebook, **frame.f_locals}


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("mlx_magic", "IPython", "decorator")


def evaluator(ipython: Any, variables: dict[str, Any]) -> Evaluate:
    """Return a function that evaluates an expression in a scope.

    Parameters
    ----------
    ipython : InteractiveShell
    variables : dict
        See `variables_in_scope`.
    """
    if variables is ipython.user_ns:
        return lambda expression: eval(expression, ipython.user_global_ns, variables)
    # As globals, so that comprehensions and lambdas see them, too.
    return lambda expression: eval(expression, variables)


def expression_or_text(
    text: str, namespace: Mapping[str, object], evaluate: Evaluate, *, option: str
) -> object:
    """Return the value of an option that may be an expression; the text if it is none.

    The name of a ``.json`` file is a text.

    Parameters
    ----------
    text : str
    namespace : mapping
        The notebook's variables.
    evaluate : callable
        Evaluates an expression in them.
    option : str
        Name of the option, for messages.

    Raises
    ------
    RequestError
        For an expression that raises, or a name that is not defined.
    """
    tree = None if text.strip().lower().endswith(".json") else parse_expression(text)
    if tree is None:
        return text
    shown = f"--{option} {one_line(text, 60)}"
    if unknown := undefined_names(tree, namespace):
        raise RequestError(f"{shown}: name {unknown[0]!r} is not defined.", option=option)
    try:
        return evaluate(text.strip())
    except Exception as error:
        raise RequestError(f"{shown}: {describe(error)}", option=option) from error


def one_line(text: str, limit: int = 120) -> str:
    """Return `text` on one line, cut to `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def describe(error: BaseException) -> str:
    """Return an exception as one line; the message of a NameError needs no type name."""
    try:
        message = one_line(str(error))
    except Exception:  # an exception class whose __str__ fails
        message = ""
    if isinstance(error, NameError) and message:
        return message
    name = type(error).__name__
    return f"{name}: {message}" if message else name
