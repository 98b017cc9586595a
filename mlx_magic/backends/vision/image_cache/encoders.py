"""Vision encoders: where a model has them, their calls, cache keys and outputs."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlx_magic.backends.prefix_cache.fingerprints import digest, is_array
from mlx_magic.backends.prefix_cache.prompt_keys import ImageKeys

TOWERS = (
    "vision_tower",
    "vision_model",
    "visual",
    "vision_encoder",
    "vision",
    "image_encoder",
    "image_vit",
    "sam_model",
)
"""Attribute names of vision encoders in mlx-vlm's models."""


def vision_encoders(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield each vision encoder of a model: its owner, its attribute name, and the encoder.

    Parameters
    ----------
    model : module
        As mlx-vlm loads it; its encoders belong to it or to one of its parts.
    """
    import mlx.nn as nn

    inner = [
        part
        for name, part in model.items()
        if isinstance(part, nn.Module) and name not in (*TOWERS, "language_model")
    ]
    for owner in (model, *inner):
        for name in TOWERS:
            tower = owner.get(name)
            if isinstance(tower, nn.Module):
                yield owner, name, tower


@dataclass(frozen=True, slots=True)
class EncoderCall:
    """A call of a vision encoder with its arguments.

    Attributes
    ----------
    name : str
        Name of the encoder.
    args, kwargs : tuple, dict
    image_count : int
        Number of images in the batch; 0 if the arguments are not a batch of images.
    is_first : bool
        Whether this is the encoder's first call for a request. Later calls may be for other
        parts of the same images.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    image_count: int
    is_first: bool

    @classmethod
    def of(
        cls, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_first: bool
    ) -> EncoderCall | None:
        """Describe a call; None if it has no array arguments."""
        given = [*args, *kwargs.values()]
        arrays = [value for value in given if is_array(value)]
        if not arrays:
            return None
        plain = all(is_array(v) or v is None or isinstance(v, int | float | str) for v in given)
        count = int(arrays[0].shape[0]) if arrays[0].ndim == 4 and plain else 0
        if any(not array.ndim or array.shape[0] != count for array in arrays):
            count = 0
        return cls(name, args, kwargs, count, is_first)

    @property
    def form(self) -> Hashable:
        """What calls must have in common to be made as one."""
        shapes = [_form(value, True) if is_array(value) else value for value in self._values]
        return (self.name, *(repr(shape) for shape in shapes), tuple(sorted(self.kwargs)))

    @property
    def parts(self) -> int:
        """Share of this call in one for several requests; 0 if it cannot be a part of one.

        A single image, or the patches of all images of the Qwen-VL families.
        """
        if self.image_count == 1:
            return 1
        arrays = [value for value in self._values if is_array(value)]
        packed = len(arrays) == 2 and all(array.ndim == 2 for array in arrays)
        if self.image_count or not packed or arrays[1].shape[1] != 3:
            return 0
        import numpy as np

        patches = int(np.asarray(arrays[1]).astype("int64").prod(axis=1).sum())
        return patches if patches == arrays[0].shape[0] else 0

    @classmethod
    def concatenated(cls, calls: Sequence[EncoderCall]) -> EncoderCall:
        """Return one call for the images of several, which have the same `form`."""
        import mlx.core as mx

        def joined(values: Sequence[Any]) -> Any:
            if not is_array(values[0]):
                return values[0]
            return mx.concatenate([mx.array(value) for value in values], axis=0)

        first = calls[0]
        args = tuple(joined(values) for values in zip(*(c.args for c in calls), strict=True))
        kwargs = {key: joined([c.kwargs[key] for c in calls]) for key in first.kwargs}
        count = sum(c.image_count for c in calls)
        return cls(first.name, args, kwargs, count, first.is_first)

    @property
    def _values(self) -> list[Any]:
        return [*self.args, *(value for _, value in sorted(self.kwargs.items()))]

    def keys(self, image_keys: ImageKeys | None) -> list[Hashable]:
        """Return each image's key: its fingerprint if the call is for all images, else a digest."""
        if self.is_first and image_keys is not None and len(image_keys.rows) == self.image_count:
            form = self._call_form()
            return [(*form, name) for name in image_keys.rows]
        return [
            digest(self.name, "row", *self._each(operator.itemgetter(at)))
            for at in range(self.image_count)
        ]

    def key(self, image_keys: ImageKeys | None) -> Hashable:
        """Return the key of the whole call."""
        if self.image_count == 1:
            return self.keys(image_keys)[0]
        if self.is_first and image_keys is not None:
            return (*self._call_form(), image_keys.whole)
        return digest(self.name, "whole", self.args, self.kwargs)

    def _call_form(self) -> tuple[Hashable, ...]:
        """Return the part of the key other than the images: shapes and options."""
        batched = self.image_count > 0
        keywords = tuple((key, _form(value, batched)) for key, value in sorted(self.kwargs.items()))
        return (self.name, tuple(_form(value, batched) for value in self.args), keywords)

    def rows(self, at: list[int]) -> EncoderCall:
        """Return the call for some of its images."""
        import mlx.core as mx

        indices = mx.array(at)
        args, kwargs = self._each(lambda array: array[indices])
        return EncoderCall(self.name, args, kwargs, len(at), self.is_first)

    def _each(self, function: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def made(value: Any) -> Any:
            return function(value) if is_array(value) else value

        return (
            tuple(made(value) for value in self.args),
            {key: made(value) for key, value in self.kwargs.items()},
        )


def _form(value: Any, batched: bool) -> Hashable:
    """Return an argument's dtype and shape, without the batch axis if `batched`, or its value."""
    if is_array(value):
        return str(value.dtype), tuple(value.shape[batched:])
    if isinstance(value, list | tuple):
        return tuple(_form(each, batched) for each in value)
    if value is None or isinstance(value, int | float | str):
        return type(value).__name__, value
    raise TypeError(f"{type(value).__name__} cannot be a part of a cache key.")


_MAX_DEPTH = 5

ROUNDING, ROUNDING_HALF = 1e-4, 3e-2
"""Maximum relative difference of the features of an image that is encoded with others, in float32
and in half precision."""


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
        made = []
        # An encoder returns the states of all its layers: most items need no call of their own.
        for each in output:
            if isinstance(each, mx.array):
                made.append(function(each))
            elif each is None or isinstance(each, LeftOut):
                made.append(each)
            else:
                made.append(mapped(function, each))
        return type(output)(made)
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
    if not isinstance(output, list | tuple):
        return isinstance(output, LeftOut)
    for each in output:
        if isinstance(each, LeftOut) or (isinstance(each, list | tuple) and has_left_out(each)):
            return True
    return False


def recording_access(output: Any) -> Any:
    """Return an output whose inner sequences record which items are accessed.

    Vision encoders return the states of all layers, of which most models use none or one.
    Caching all of them would take ten times the memory and more.
    """
    if type(output) not in (list, tuple):
        return output
    return type(output)([_watch(each) for each in output])


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
        [
            type(inner)([each if at in seen.used else LeftOut() for at, each in enumerate(inner)])
            if isinstance(seen, _Watched)
            else inner
            for inner, seen in zip(output, watch, strict=True)
        ]
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
            if id(inner) in found or not found.isdisjoint(map(id, held)):
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


def split(output: Any, parts: Sequence[int]) -> list[Any] | None:
    """Split an output for several requests; None if its rows are not in proportion to `parts`."""
    total = sum(parts)
    try:
        held = arrays(output)
    except TypeError:
        return None
    fits = bool(held) and all(
        array.ndim and not array.shape[0] * part % total for array in held for part in parts
    )
    ends = list(itertools.accumulate(parts))
    pairs = list(zip([0, *ends], ends, strict=False))
    return [mapped(partial(_share, *pair, total), output) for pair in pairs] if fits else None


def _share(begin: int, end: int, total: int, array: Any) -> Any:
    rows = array.shape[0]
    return array[rows * begin // total : rows * end // total]


def agree(one: Any, other: Any) -> bool:
    """Whether the first arrays of two outputs differ by rounding only."""
    import mlx.core as mx

    a, b = arrays(one)[0], arrays(other)[0]
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    limit = ROUNDING if a.dtype == mx.float32 else ROUNDING_HALF
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    difference = mx.linalg.norm(a - b) / mx.maximum(mx.linalg.norm(b), 1e-6)
    # In this form NaN counts as a difference.
    found: Any = difference.item()
    return bool(found <= limit)
