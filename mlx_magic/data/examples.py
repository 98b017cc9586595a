"""Examples of answers: turns before the question that show what is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_magic.argument_checks import short_repr
from mlx_magic.data.schema import Schema
from mlx_magic.engine.request import Choices
from mlx_magic.errors import RequestError
from mlx_magic.images.opening import take_images
from mlx_magic.session import TakenExample


def take_examples(
    examples: Any,
    shape: Schema | Choices | None = None,
    *,
    max_pixels: int | None = None,
    normalize: bool = True,
) -> tuple[TakenExample, ...]:
    """Take the images and the answers of examples, as they are now.

    Parameters
    ----------
    examples : sequence of (image, object)
        The image may be anything that a question takes, a list of images, or None.
    shape : Schema or Choices, optional
        Writes an object as the model would. Without it, answers are str.
    max_pixels : int, optional
    normalize : bool
        See `images.opening.take_images`.

    Raises
    ------
    RequestError
        These are no such pairs, or an object does not fit.
    ImageError
        An image cannot be used.
    """
    if examples is None or isinstance(examples, str) or not isinstance(examples, Sequence):
        raise _wrong(short_repr(examples))
    taken = []
    for at, pair in enumerate(examples):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise _wrong(f"examples[{at}] is {short_repr(pair)}")
        image, value = pair
        if shape is None and not (isinstance(value, str) and value.strip()):
            raise _wrong(f"examples[{at}] has the answer {short_repr(value)}, which is no text")
        try:
            answer = value if shape is None else shape.write(value)
        except RequestError as error:
            raise RequestError(f"examples[{at}]: {error}", option="examples") from None
        named = [] if image is None else [(f"examples[{at}]", image)]
        images = take_images(named, max_pixels=max_pixels, normalize=normalize)
        images.read()
        taken.append(TakenExample(images, answer))
    return tuple(taken)


def _wrong(what: str) -> RequestError:
    return RequestError(
        f"{what}: examples are pairs of an image and its answer, [(image, answer), ...].",
        option="examples",
    )
