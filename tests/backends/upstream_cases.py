"""Breaks the names of libraries one by one, as a release that renames or changes them does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mlx_magic.models import upstream_checks
from mlx_magic.models.upstream_checks import Mechanism, Name

Break = tuple[Mechanism, Name, str]


def breaks(mechanisms: Sequence[Mechanism], *, every: bool) -> list[Break]:
    """Return each name of the mechanisms with each way to break it; else one of each way."""
    found: list[Break] = []
    for mechanism in mechanisms:
        gone = [(mechanism, name, "removed") for name in mechanism.needed]
        changed = [
            (mechanism, name, "other arguments")
            for name in mechanism.needed
            if name.positional is not None and (name.positional or name.keywords)
        ]
        found += [*gone, *changed] if every else [*gone[-1:], *changed[-1:]]
    return found


def named(part: object) -> str:
    """Return the id of a parameter."""
    return part.title.replace(" ", "-") if isinstance(part, Mechanism) else str(part)


def broken(monkeypatch: pytest.MonkeyPatch, name: Name, how: str) -> None:
    """Let a name look removed or changed; the library itself still has what it needs."""
    real: Callable[[Name], Any] = upstream_checks.find

    def find(wanted: Name) -> Any:
        if (wanted.module, wanted.path) != (name.module, name.path):
            return real(wanted)
        if how == "removed":
            raise AttributeError(name.path)
        return _changed

    monkeypatch.setattr(upstream_checks, "find", find)
    recheck()


def recheck() -> None:
    """Let all mechanisms check again."""
    for each in upstream_checks.MECHANISMS:
        each.recheck()


def _changed(another: object, *, new: object) -> None: ...


EVERY = os.environ.get("MLX_MAGIC_EVERY") == "1"
