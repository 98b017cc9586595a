"""Variable names for results, for cells and the panel: valid ones, and free ones."""

from __future__ import annotations

import builtins
import keyword
import re
import unicodedata
from collections.abc import Mapping

from mlx_magic.errors import RequestError
from mlx_magic.formatting import short_label
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


_LONGEST_NAME = 40


def free_name(wanted: str, namespace: Mapping[str, object], value: object) -> str:
    """Return a variable name for `value` that is not used by another value.

    Parameters
    ----------
    wanted : str
        A file's name, or any other text: ``"receipt (1).jpg"`` gives ``receipt_1``.
    namespace : mapping
        The notebook's variables. A name that already holds `value` counts as free.
    value : object
    """
    stem = re.split(r"[/\\]", wanted.rstrip("/\\"))[-1]
    stem = re.sub(r"(?<=.)\.[A-Za-z]\w{0,4}$", "", stem)
    # Python normalizes identifiers to NFKC.
    stem = unicodedata.normalize("NFKC", stem)
    kept = "".join(char if f"_{char}".isidentifier() else "_" for char in stem)
    name = re.sub("__+", "_", kept)[:_LONGEST_NAME].strip("_") or "image"
    if not name.isidentifier() or is_reserved(name):
        name = f"image_{name}"
    free, number = name, 1
    while free in namespace and namespace[free] is not value:
        number += 1
        free = f"{name}_{number}"
    return free


def describe_existing(name: str, namespace: Mapping[str, object]) -> str:
    """Return the current value's type, as ``"x is a DataFrame"``; ``""`` if undefined."""
    if name not in namespace:
        return ""
    value = namespace[name]
    if value is None:
        return f"{name} is None"
    kind = short_label(type(value).__name__, _LONGEST_NAME)
    return f"{name} is {'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
