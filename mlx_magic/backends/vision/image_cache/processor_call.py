"""One call of an image processor: how it was called, and copies of what it gave."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.backends.prefix_cache.fingerprints import is_array


@dataclass(frozen=True, slots=True)
class Call:
    """How an image processor was called, so that it can be called so again.

    Attributes
    ----------
    form : hashable
        By what it is known among the calls for the same pictures.
    order : int, list, tuple or None
        Where which picture was: its number, in lists as they came. None where it got something
        else than the request's own pictures.
    args : tuple
    options : dict
    """

    form: Hashable
    order: Any
    args: tuple[Any, ...] = field(repr=False)
    options: dict[str, Any] = field(repr=False)

    @classmethod
    def of(
        cls, number: int, given: Any, args: tuple[Any, ...], options: dict[str, Any], images: Any
    ) -> Call:
        """Describe a call.

        Before it is made: the processor may change what it gets.

        Parameters
        ----------
        number : int
            Which one it is for these pictures.
        given, args, options
            What the processor got.
        images : sequence of PIL.Image.Image
            The request's, as they are.

        Raises
        ------
        TypeError
            Where it got an option whose meaning is not known.
        """
        order = _order(given, images)
        form = (number, _form(order), _form(args), _form(options))
        return cls(form, order, copy.deepcopy(args), copy.deepcopy(options))

    def repeat(self, processor: Any, images: Sequence[Any]) -> Any:
        """Call a processor so with other pictures, as many; return what it gives."""
        options = copy.deepcopy(self.options)
        return processor(_arranged(self.order, images), *copy.deepcopy(self.args), **options)


def state(processor: object) -> dict[str, Hashable]:
    """Return what a processor notes in itself, to see whether a call changes it."""
    found: dict[str, Hashable] = {}
    for name, value in getattr(processor, "__dict__", {}).items():
        try:
            found[name] = _form(value)
        except (TypeError, RecursionError):
            found[name] = id(value)
    return found


def copied(output: Any) -> Any:
    """Return an output whose entries others may take out; arrays are shared.

    Raises
    ------
    TypeError
        Where it is neither a dictionary, nor a feature of transformers, nor made of arrays.
    """
    from transformers import BatchFeature

    if isinstance(output, BatchFeature):
        return type(output)(copied(dict(output.data)))
    if type(output) in (list, tuple):
        return type(output)(copied(each) for each in output)
    if type(output) is dict:
        return {key: copied(each) for key, each in output.items()}
    if output is None or is_array(output) or isinstance(output, bool | int | float | str):
        return output
    raise TypeError(f"{type(output).__name__} is not known to be safe to share.")


def arrays(value: Any) -> list[Any]:
    """Return all arrays in an output."""
    if is_array(value):
        return [value]
    if isinstance(value, dict):
        return [array for each in value.values() for array in arrays(each)]
    if isinstance(value, list | tuple):
        return [array for each in value for array in arrays(each)]
    return arrays(value.data) if hasattr(value, "data") else []


def held_nbytes(value: Any) -> int:
    """Return the bytes of all arrays in an output."""
    return sum(int(array.nbytes) for array in arrays(value))


def _order(given: Any, images: Sequence[Any]) -> Any:
    """Say where which picture is; None where not all of it is the request's own."""
    if type(given) in (list, tuple):
        value = [_order(each, images) for each in given]
        return None if None in value else type(given)(value)
    return next((number for number, image in enumerate(images) if given is image), None)


def _arranged(order: Any, images: Sequence[Any]) -> Any:
    if isinstance(order, int):
        return images[order]
    return type(order)(_arranged(each, images) for each in order)


def _form(value: Any) -> Hashable:
    """Return options as something to look for.

    Raises
    ------
    TypeError
        Where it is not known what they are.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return type(value).__name__, value
    if isinstance(value, list | tuple):
        return tuple(_form(each) for each in value)
    if isinstance(value, dict):
        return tuple((str(key), _form(value[key])) for key in sorted(value, key=str))
    raise TypeError(f"{type(value).__name__} is no plain option.")
