"""A call of a vision tower, told apart by pictures where it is a batch of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_magic.inference.backends.digests import digest, is_array


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tower: its arguments, by place or name.

    Attributes
    ----------
    name : str
        The tower's.
    args, kwargs : tuple, dict
    pictures : int
        How many there are, if it is a batch of them; else 0.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    pictures: int

    @classmethod
    def of(cls, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Return the call, or None where its arguments cannot be told apart."""
        given = [*args, *kwargs.values()]
        held = [value for value in given if is_array(value)]
        if not held:
            return None
        plain = all(is_array(v) or v is None or isinstance(v, int | float | str) for v in given)
        count = int(held[0].shape[0]) if held[0].ndim == 4 and plain else 0
        if any(not array.ndim or array.shape[0] != count for array in held):
            count = 0
        return cls(name, args, kwargs, count)

    def keys(self) -> list[bytes]:
        """Return a digest of each picture."""
        return [
            digest(self.name, "row", *self._each(operator.itemgetter(at)))
            for at in range(self.pictures)
        ]

    def key(self) -> bytes:
        """Return a digest of the whole call."""
        if self.pictures == 1:
            return self.keys()[0]
        return digest(self.name, "whole", self.args, self.kwargs)

    def rows(self, at: list[int]) -> Call:
        """Return the call for some of its pictures."""
        import mlx.core as mx

        places = mx.array(at)
        args, kwargs = self._each(lambda array: array[places])
        return Call(self.name, args, kwargs, len(at))

    def _each(self, function: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def made(value: Any) -> Any:
            return function(value) if is_array(value) else value

        return (
            tuple(made(value) for value in self.args),
            {key: made(value) for key, value in self.kwargs.items()},
        )
