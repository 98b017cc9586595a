"""Limits on the pixels that a panel holds; equal images share their pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlx_magic.errors import ImageTooLargeError
from mlx_magic.formatting import short_label
from mlx_magic.images.image import ImageInput
from mlx_magic.images.limits import MAX_PIXELS_TOTAL

MOST_READY = MAX_PIXELS_TOTAL
"""Maximum pixels of one question; in memory each takes 4 bytes (1 GB in all)."""

MOST_HELD = 2 * MAX_PIXELS_TOTAL
"""Maximum pixels together with the images of earlier turns."""


def shared(images: Iterable[ImageInput], known: Iterable[ImageInput]) -> list[ImageInput]:
    """Return the images, sharing the pixels of equal known images.

    Parameters
    ----------
    images : iterable of ImageInput
    known : iterable of ImageInput
    """
    known_pixels = {image.digest: image.stored for image in known}
    found: list[ImageInput] = []
    for image in images:
        stored = known_pixels.setdefault(image.digest, image.stored)
        found.append(image if stored is image.stored else image.sharing(stored))
    return found


def require_room(
    name: str, new: int, ready: Sequence[ImageInput], earlier: Iterable[ImageInput]
) -> None:
    """Check that an image does not exceed the limits.

    Parameters
    ----------
    name : str
        Name in the error.
    new : int
        Pixels that it would add.
    ready : sequence of ImageInput
        Images of the same question.
    earlier : iterable of ImageInput
        Images of the conversation.

    Raises
    ------
    ImageTooLargeError
    """
    total = new + _pixels(ready)
    if total > MOST_READY:
        raise _too_much(
            f"{short_label(name)} was not added: this question would have "
            f"{total / 1e6:.0f} megapixels, the limit is {MOST_READY / 1e6:.0f}; make it smaller, "
            "or remove some first.",
            name,
            total,
            MOST_READY,
        )
    total = new + _pixels([*ready, *earlier])
    if total > MOST_HELD:
        raise _too_much(
            f"{short_label(name)} was not added: with the earlier turns this panel would hold "
            f"{total / 1e6:.0f} megapixels, the limit is {MOST_HELD / 1e6:.0f}; start a new "
            "conversation, or make it smaller.",
            name,
            total,
            MOST_HELD,
        )


def _pixels(images: Iterable[ImageInput]) -> int:
    return sum({id(image.stored): image.size[0] * image.size[1] for image in images}.values())


def added(images: Iterable[ImageInput], known: Iterable[ImageInput]) -> int:
    """Return the number of pixels that images add to the known ones."""
    known_pixels = [*known]
    return _pixels([*known_pixels, *images]) - _pixels(known_pixels)


def _too_much(message: str, name: str, size: int, limit: int) -> ImageTooLargeError:
    return ImageTooLargeError(message, source=short_label(name), size=size, limit=limit)
