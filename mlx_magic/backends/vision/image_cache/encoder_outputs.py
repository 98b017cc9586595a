"""Outputs of vision encoders (arrays in tuples and lists): split, joined and pruned by use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_MAX_DEPTH = 5


class LeftOut:
    """Placeholder for an array that was not cached, because the model did not use it."""


class _Watched:
    """A sequence that records which of its items are accessed."""

    used: set[int]

    def __getitem__(self, at: Any) -> Any:
        indices = range(len(self))[at]  # type: ignore[arg-type]
        self.used.update(indices if isinstance(at, slice) else [indices])
        return super().__getitem__(at)  # type: ignore[misc]

    def __iter__(self) -> Iterator[Any]:
        self.used.update(range(len(self)))  # type: ignore[arg-type]
        return super().__iter__()  # type: ignore[misc,no-any-return]


class _WatchedList(_Watched, list[Any]):
    pass


class _WatchedTuple(_Watched, tuple[Any, ...]):
    pass


def arrays(output: Any) -> list[Any]:
    """Return all arrays of an output.

    Raises
    ------
    TypeError
        The output holds anything but arrays, None, tuples and lists.
    """
    found: list[Any] = []
    mapped(found.append, output)
    return found


def mapped(function: Callable[[Any], Any], output: Any) -> Any:
    """Apply a function to each array of an output."""
    import mlx.core as mx

    if isinstance(output, mx.array):
        return function(output)
    if output is None or isinstance(output, LeftOut):
        return output
    if type(output) in (list, tuple):
        return type(output)(mapped(function, each) for each in output)
    raise TypeError(f"{type(output).__name__} cannot be kept.")


def joined(rows: Sequence[Any]) -> Any:
    """Join the outputs of several images to one output."""
    import mlx.core as mx

    first = rows[0]
    if len(rows) == 1 or first is None:
        return first
    if any(isinstance(row, LeftOut) for row in rows):
        return LeftOut()
    if isinstance(first, mx.array):
        return mx.concatenate(list(rows), axis=0)
    return type(first)(joined(each) for each in zip(*rows, strict=True))


def has_left_out(output: Any) -> bool:
    """Whether a part of an output was not cached."""
    if isinstance(output, list | tuple):
        return any(has_left_out(each) for each in output)
    return isinstance(output, LeftOut)


def recording_access(output: Any) -> Any:
    """Return an output whose inner sequences record which items are accessed.

    Vision encoders return the states of all layers, of which most models use none or one.
    Caching all of them would take ten times the memory and more.
    """
    if type(output) not in (list, tuple):
        return output
    return type(output)(_watch(each) for each in output)


def _watch(inner: Any) -> Any:
    if type(inner) not in (list, tuple):
        return inner
    made: Any = _WatchedList(inner) if type(inner) is list else _WatchedTuple(inner)
    made.used = set()
    return made


def without_unused(output: Any, watch: Any) -> Any:
    """Return an output with `LeftOut` for items that were not accessed in its watched copy."""
    if type(output) not in (list, tuple):
        return output
    return type(output)(
        type(inner)(each if at in seen.used else LeftOut() for at, each in enumerate(inner))
        if isinstance(seen, _Watched)
        else inner
        for inner, seen in zip(output, watch, strict=True)
    )


def mark_used_by(watch: Any, result: object) -> None:
    """Mark items as used that are part of a model's result: they may be accessed later.

    Parameters
    ----------
    watch : object
        From `recording_access`.
    result : object
        A mapping, a sequence, or an object with these in its attributes; searched `_MAX_DEPTH`
        levels deep.
    """
    found: set[int] = set()
    layer: list[Any] = [result]
    for _ in range(_MAX_DEPTH):
        found.update(map(id, layer))
        layer = [below for each in layer for below in _inside(each)]
    for inner in watch if type(watch) in (list, tuple) else ():
        if isinstance(inner, _Watched):
            held = _inside(inner)
            if id(inner) in found or any(id(each) in found for each in held):
                inner.used.update(range(len(held)))


def _inside(value: Any) -> list[Any]:
    """Return a value's items, without recording an access."""
    if isinstance(value, list):
        return list(list.__iter__(value))
    if isinstance(value, tuple):
        return list(tuple.__iter__(value))
    if isinstance(value, Mapping):
        return list(value.values())
    return list(vars(value).values()) if hasattr(value, "__dict__") else []
