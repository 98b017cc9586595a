"""A call of a vision encoder, and its cache keys."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from mlx_magic.backends.prefix_cache.fingerprints import digest, is_array
from mlx_magic.backends.prefix_cache.image_keys import ImageKeys


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
