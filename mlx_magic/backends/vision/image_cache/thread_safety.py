"""Which library objects do not use MLX, so that any thread may use them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Container, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

KNOWN = ("transformers", "mlx_vlm")
"""Packages whose code is inspected; any other code, such as a checkpoint's, may use MLX."""


def is_mlx_free(part: object) -> bool:
    """Whether no method of an object's class refers to MLX.

    It inspects the names in the code, and one level further the functions that these name. Code
    that reaches MLX in more steps is not detected, so check its output for MLX arrays, too.

    Parameters
    ----------
    part : object
        An image processor, say.
    """
    kinds = [kind for kind in type(part).__mro__ if not _is_of(kind, sys.stdlib_module_names)]
    return all(_is_of(kind, KNOWN) and not any(map(_names_mlx, _functions(kind))) for kind in kinds)


def _functions(kind: type) -> Iterator[FunctionType]:
    for value in vars(kind).values():
        method: Any = value.fget if isinstance(value, property) else value
        held = inspect.unwrap(method)
        if isinstance(held, FunctionType):
            yield held


def _names_mlx(function: FunctionType) -> bool:
    names = set(_names(function.__code__))
    held = [function.__globals__.get(name) for name in names]
    return any(_package(name) == "mlx" for name in names) or any(map(_leads_to_mlx, held))


def _leads_to_mlx(value: Any) -> bool:
    if _is_of(value, ("mlx",)):
        return True
    # Such as `to_mlx`, which makes arrays of whatever it is given.
    return isinstance(value, FunctionType) and any(
        _is_of(value.__globals__.get(name), ("mlx",)) for name in _names(value.__code__)
    )


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names in code: globals, attributes, imports; those of nested functions, too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_of(value: Any, packages: Container[str]) -> bool:
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return _package(module if isinstance(module, str) else "") in packages


def _package(module: str) -> str:
    return module.partition(".")[0]
