"""Valid variable names for results, for cells and the panel."""

from __future__ import annotations

import builtins
import keyword
import re
import unicodedata

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.expressions import one_line

_SHOWN = 40

_IPYTHON = frozenset({"In", "Out", "exit", "quit", "get_ipython"})
# Recent results and inputs, numbered ones, directory history, exit code of `!command`.
_IPYTHON_PRIVATE = re.compile(r"_{1,3}|_[0-9]+|_i{1,3}|_i[0-9]+|_[iod]h|_exit_code")
_DUNDER = re.compile(r"__.*__", re.DOTALL)


def check_name(name: str, prefix: str = "") -> str:
    """Return the normalized (NFKC) name of a variable.

    Python normalizes identifiers, so two different spellings can be one variable.

    Parameters
    ----------
    name : str
        As typed.
    prefix : str
        Precedes the name in messages, such as ``"-o "``.

    Raises
    ------
    RequestError
        If it is not a valid name, or one that Python or IPython uses.
    """
    shown = prefix + repr(one_line(name, _SHOWN))
    if not name.strip() and not prefix:
        raise RequestError("The variable has no name: enter one, such as answer.", option="output")
    normalized = unicodedata.normalize("NFKC", name)
    if not name.isidentifier() or not normalized.isidentifier():
        raise RequestError(
            f"{shown} is not a variable name: use letters, digits and _, starting with a letter.",
            option="output",
        )
    if keyword.iskeyword(normalized):
        raise RequestError(f"{shown} is a Python keyword: use another name.", option="output")
    if reserved_by := _reserved_by(normalized):
        alternative = f"{normalized.strip('_')[:_SHOWN]}_1"
        if not alternative[:1].isalpha() or _reserved_by(alternative):
            alternative = "answer"
        raise RequestError(
            f"{shown} is a name that {reserved_by} itself uses: "
            f"use another, such as {alternative}.",
            option="output",
        )
    return normalized


def is_reserved(name: str) -> bool:
    """Return whether Python or IPython uses a (normalized) name."""
    return keyword.iskeyword(name) or bool(_reserved_by(name))


def is_ipython_name(name: str) -> bool:
    """Return whether a name is one of IPython's public names, such as ``In``."""
    return name in _IPYTHON


def _reserved_by(name: str) -> str:
    if name in _IPYTHON or _IPYTHON_PRIVATE.fullmatch(name):
        return "IPython"
    if hasattr(builtins, name) or _DUNDER.fullmatch(name):
        return "Python"
    return ""
