"""What a model's image processor made of pictures is kept: to cut and scale takes its time, too."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_magic.inference.backends.digests import is_array
from mlx_magic.inference.backends.pictures import Pictures

if TYPE_CHECKING:
    from mlx_magic.inference.image_input import ImageInput


@dataclass(slots=True)
class _Made:
    """What was made of the pictures of a request."""

    outputs: dict[Hashable, Any] = field(default_factory=dict)
    pictures: Pictures | None = None
    nbytes: int = 0


class Processed:
    """What an image processor gave, by the pictures of a request.

    It stands in for the processor's ``image_processor`` while a request's inputs are made,
    and only then. With 17 tiles a picture took 0.15 s to be processed: most of the time to a
    second question's first token, once nothing else is done twice. A processor without
    such a part, or whose output is not known to be harmless to share, is asked each time.

    Parameters
    ----------
    limit : int
        Bytes to keep; what was not used for longest goes first.

    Attributes
    ----------
    nbytes : int
        What is kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._kept: OrderedDict[Hashable, _Made] = OrderedDict()

    @contextlib.contextmanager
    def standing_in(self, processor: Any, images: Sequence[ImageInput]) -> Iterator[None]:
        """Answer for the image processor within this block, where that is known.

        What it gave is kept once the block has ended well.

        Parameters
        ----------
        processor : object
            The model's.
        images : sequence of ImageInput
            All that it is given.
        """
        original = getattr(processor, "image_processor", None)
        if not images or not callable(original):
            yield
            return
        key = _key(images)
        known = self._kept.get(key)
        stand_in = _StandIn(original, known.outputs if known else {})
        processor.image_processor = stand_in
        try:
            yield
        finally:
            processor.image_processor = original
        if not stand_in.new:
            if known is not None:
                self._kept.move_to_end(key)
            return
        if known is not None:
            # Asked in another way: what was made is not what has those names.
            self._drop(key)
        self._keep(key, _Made(stand_in.new, nbytes=_nbytes(stand_in.new)))

    @contextlib.contextmanager
    def named(
        self, images: Sequence[ImageInput], inputs: dict[str, Any]
    ) -> Iterator[Pictures | None]:
        """Give the pictures of a request their names within this block.

        The same ones each time as long as they are kept: then nothing has to be hashed.

        Parameters
        ----------
        images : sequence of ImageInput
        inputs : dict
            What was made of them.
        """
        made = self._kept.get(_key(images)) if images else None
        if made is not None and made.pictures is not None:
            yield made.pictures
            return
        pictures = Pictures.of(inputs)
        try:
            yield pictures
        finally:
            if pictures is not None:
                self._name(_key(images), pictures, sum(map(_nbytes, inputs.values())))

    def clear(self) -> None:
        """Forget all of it."""
        for key in list(self._kept):
            self._drop(key)

    def _name(self, key: Hashable, pictures: Pictures, size: int) -> None:
        made = self._kept.get(key)
        if made is None or made.pictures is not None:
            pictures.settle()
            return
        # Its names hold the inputs, which are copies of what the processor gave.
        made.pictures = pictures
        made.nbytes += size
        self.nbytes += size
        self._make_room()

    def _keep(self, key: Hashable, made: _Made) -> None:
        if made.nbytes > self.limit:
            return
        self._kept[key] = made
        self.nbytes += made.nbytes
        self._make_room()

    def _make_room(self) -> None:
        while self.nbytes > self.limit:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> None:
        made = self._kept.pop(key)
        self.nbytes -= made.nbytes
        if made.pictures is not None:
            made.pictures.settle()


class _StandIn:
    """Stands in for an image processor; in all but the call it is that."""

    def __init__(self, original: Any, known: dict[Hashable, Any]) -> None:
        self._original = original
        self._known = known
        self._calls = 0
        self.new: dict[Hashable, Any] = {}

    def __call__(self, images: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._calls += 1
        try:
            form = (self._calls, _form(args), _form(kwargs))
        except TypeError:
            return self._original(images, *args, **kwargs)
        if form in self._known:
            return _copy(self._known[form])
        output = self._original(images, *args, **kwargs)
        with contextlib.suppress(TypeError):
            self.new[form] = _copy(output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _key(images: Sequence[ImageInput]) -> Hashable:
    return tuple(image.digest for image in images)


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


def _copy(output: Any) -> Any:
    """Return an output whose entries others may take out; arrays are shared.

    Raises
    ------
    TypeError
        Where it is neither a dictionary, nor a feature of transformers, nor made of arrays.
    """
    from transformers import BatchFeature

    if isinstance(output, BatchFeature):
        return type(output)(_copy(dict(output.data)))
    if type(output) in (list, tuple):
        return type(output)(_copy(each) for each in output)
    if type(output) is dict:
        return {key: _copy(each) for key, each in output.items()}
    if output is None or is_array(output) or isinstance(output, bool | int | float | str):
        return output
    raise TypeError(f"{type(output).__name__} is not known to be safe to share.")


def _nbytes(held: Any) -> int:
    if is_array(held):
        return int(held.nbytes)
    if isinstance(held, dict):
        return sum(map(_nbytes, held.values()))
    if isinstance(held, list | tuple):
        return sum(map(_nbytes, held))
    return _nbytes(held.data) if hasattr(held, "data") else 0
