"""One call of an image processor, and copies of its output."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an image processor, which can be repeated with other images.

    Attributes
    ----------
    form : hashable
        Key of the call among the calls for the same images.
    order : int, list, tuple or None
        Index of each image in the call, nested as the images were. None if the call got anything
        but the request's own images.
    args : tuple
    options : dict
    method : str
        ``"preprocess"``, or ``""`` for the call of the processor itself.
    """

    form: Hashable
    order: Any
    args: tuple[Any, ...] = field(repr=False)
    options: dict[str, Any] = field(repr=False)
    method: str = ""

    @classmethod
    def of(
        cls,
        number: int,
        given: Any,
        args: tuple[Any, ...],
        options: dict[str, Any],
        images: Any,
        method: str = "",
    ) -> Call:
        """Describe a call before it is made: the processor may change its arguments.

        Parameters
        ----------
        number : int
            Index of the call among those for these images.
        given, args, options
            Arguments of the call.
        images : sequence of PIL.Image.Image
            The request's images.
        method : str
            See the attributes.

        Raises
        ------
        TypeError
            An option is not of a plain type.
        """
        order = _order(given, images)
        form = (number, method, _form(order), _form(args), _form(options))
        return cls(form, order, copy.deepcopy(args), copy.deepcopy(options), method)

    def repeat(self, processor: Any, images: Sequence[Any]) -> Any:
        """Repeat the call with as many other images; return the output."""
        options = copy.deepcopy(self.options)
        called = getattr(processor, self.method) if self.method else processor
        return called(_arranged(self.order, images), *copy.deepcopy(self.args), **options)


def state(processor: object) -> dict[str, Hashable]:
    """Return the attributes of a processor, to detect whether a call changes them."""
    found: dict[str, Hashable] = {}
    for name, value in getattr(processor, "__dict__", {}).items():
        try:
            found[name] = _form(value)
        except (TypeError, RecursionError):
            found[name] = id(value)
    return found


def copied(output: Any) -> Any:
    """Copy the containers of an output, so that their items can be removed; arrays are shared.

    Raises
    ------
    TypeError
        The output holds anything but arrays, plain values, lists, tuples, dictionaries and
        transformers' BatchFeature.
    """
    import mlx.core as mx
    import numpy as np
    from transformers import BatchFeature

    if isinstance(output, BatchFeature):
        return type(output)(copied(dict(output.data)))
    plain = (mx.array, np.ndarray, int, float, str, type(None))
    if type(output) in (list, tuple):
        return type(output)([v if isinstance(v, plain) else copied(v) for v in output])
    if type(output) is dict:
        return {key: v if isinstance(v, plain) else copied(v) for key, v in output.items()}
    if isinstance(output, plain):
        return output
    raise TypeError(f"{type(output).__name__} is not known to be safe to share.")


def arrays(value: Any) -> list[Any]:
    """Return all arrays in an output."""
    import mlx.core as mx
    import numpy as np

    found = []
    parts = value if isinstance(value, list | tuple) else [value]
    for part in value.values() if isinstance(value, dict) else parts:
        if isinstance(part, mx.array | np.ndarray):
            found.append(part)
        elif isinstance(part, dict | list | tuple):
            found += arrays(part)
        elif hasattr(part, "data"):
            found += arrays(part.data)
    return found


def held_nbytes(value: Any) -> int:
    """Return the bytes of all arrays in an output."""
    return sum([int(array.nbytes) for array in arrays(value)])


def _order(given: Any, images: Sequence[Any]) -> Any:
    """Return the index of each image, nested as `given`; None if any is not the request's."""
    if type(given) in (list, tuple):
        value = [_order(each, images) for each in given]
        return None if None in value else type(given)(value)
    return next((number for number, image in enumerate(images) if given is image), None)


def _arranged(order: Any, images: Sequence[Any]) -> Any:
    if isinstance(order, int):
        return images[order]
    return type(order)(_arranged(each, images) for each in order)


def _form(value: Any) -> Hashable:
    """Return options as a hashable key.

    Raises
    ------
    TypeError
        A value is not of a plain type.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return type(value).__name__, value
    if isinstance(value, list | tuple):
        return tuple([_form(each) for each in value])
    if isinstance(value, dict):
        return tuple([(str(key), _form(value[key])) for key in sorted(value, key=str)])
    raise TypeError(f"{type(value).__name__} is no plain option.")
