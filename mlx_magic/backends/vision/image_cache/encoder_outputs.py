"""What a vision tower gives: arrays, in tuples and lists, taken apart and put together by rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_MAX_DEPTH = 5


class LeftOut:
    """Stands where an array was not kept, since nobody looked at it. No use of it works."""


class _Watched:
    """Notes which places of a sequence are looked at."""

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
        Where it holds anything but arrays, None, tuples and lists.
    """
    found: list[Any] = []
    mapped(found.append, output)
    return found


def mapped(function: Callable[[Any], Any], output: Any) -> Any:
    """Return an output with each array replaced by what a function makes of it."""
    import mlx.core as mx

    if isinstance(output, mx.array):
        return function(output)
    if output is None or isinstance(output, LeftOut):
        return output
    if type(output) in (list, tuple):
        return type(output)(mapped(function, each) for each in output)
    raise TypeError(f"{type(output).__name__} cannot be kept.")


def joined(rows: Sequence[Any]) -> Any:
    """Return the outputs of several pictures as that of all of them together."""
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
    """Say whether something of an output was not kept."""
    if isinstance(output, list | tuple):
        return any(has_left_out(each) for each in output)
    return isinstance(output, LeftOut)


def watched(output: Any) -> Any:
    """Return an output whose inner sequences note what is looked at.

    Towers give the states of all their layers in one, of which most models use none or
    one: to keep them all would take ten times the room and more.
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
    """Return an output without what nobody looked at in its watched copy."""
    if type(output) not in (list, tuple):
        return output
    return type(output)(
        type(inner)(each if at in seen.used else LeftOut() for at, each in enumerate(inner))
        if isinstance(seen, _Watched)
        else inner
        for inner, seen in zip(output, watch, strict=True)
    )


def mark_used_by(watch: Any, result: object) -> None:
    """Note as looked at what is part of a model's result: others will look at it later.

    Parameters
    ----------
    watch : object
        From `watched`.
    result : object
        A mapping, a sequence, or an object with such in its attributes; a few levels deep.
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
    """Return what a value holds, without noting that it was looked at."""
    if isinstance(value, list):
        return list(list.__iter__(value))
    if isinstance(value, tuple):
        return list(tuple.__iter__(value))
    if isinstance(value, Mapping):
        return list(value.values())
    return list(vars(value).values()) if hasattr(value, "__dict__") else []
