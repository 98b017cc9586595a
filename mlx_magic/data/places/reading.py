"""The places of a result: what its answer writes, in pixels of the upright originals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_magic.argument_checks import plain, short_repr
from mlx_magic.data.places import dialects
from mlx_magic.data.places.dialects import Dialect
from mlx_magic.data.places.written import LONGEST, Written, first
from mlx_magic.engine.places.grounding import MOST_SCALE, Grounding, Scale
from mlx_magic.engine.places.values import Box, Boxes, Point, Points
from mlx_magic.errors import RequestError
from mlx_magic.formatting import shown

if TYPE_CHECKING:
    from PIL import Image

    from mlx_magic.engine.result import VisionResult
    from mlx_magic.images.image import ImageInput

MOST = 10_000
"""Maximum number of places that are read from an answer."""


def boxes(result: VisionResult) -> Boxes:
    """Return the boxes of an answer. See `VisionResult.boxes`."""
    places, note = _places(result)
    return Boxes((each for each in places if isinstance(each, Box)), result.images, note)


def points(result: VisionResult) -> Points:
    """Return the points of an answer. See `VisionResult.points`."""
    places, note = _places(result)
    return Points((each for each in places if isinstance(each, Point)), result.images, note)


def annotated(result: VisionResult) -> Image.Image | None:
    """Return an image with its places. See `VisionResult.annotated`."""
    from mlx_magic.data.places.drawing import draw

    if not result.images:
        return None
    places, _ = _places(result)
    index = min((place.image for place in places), default=0)
    return draw(result.images[index], [place for place in places if place.image == index])


def with_dialect(result: VisionResult, name: str, scale: Scale | None) -> VisionResult:
    """Return a result that is read otherwise. See `VisionResult.with_dialect`."""
    dialect = dialects.BY_NAME.get(str(name))
    if dialect is None:
        raise RequestError(
            f"dialect is {short_repr(name)}: use one of {', '.join(dialects.BY_NAME)}.",
            option="dialect",
        )
    wanted = dialect.scale if scale is None else _checked(scale)
    if wanted is None:
        raise RequestError(
            f"dialect {name} has no scale of its own: name one, such as scale=1000, or "
            'scale="pixels" for those of the image that the model saw.',
            option="scale",
        )
    known = result.grounding or Grounding()
    return replace(result, grounding=replace(known, dialect=name, scale=wanted))


def _checked(scale: object) -> Scale:
    number = plain(scale)
    if isinstance(number, str) and number == "pixels":
        return "pixels"
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if is_number and 0 < number < MOST_SCALE:
        return float(number)
    raise RequestError(
        f'scale is {short_repr(scale)}: use a number above 0, or "pixels".', option="scale"
    )


def _places(result: VisionResult) -> tuple[list[Box | Point], str]:
    """Return all places of an answer, and why some or all are missing."""
    grounding = result.grounding
    if grounding is None:
        return [], "the model does not see images, or the result is of an earlier release"
    dialect, scale = _dialect(grounding)
    if dialect is None or scale is None:
        return [], (
            f"how {grounding.model_type or 'this model'} writes places is not known: "
            'result.with_dialect("json", scale=1000) reads JSON'
        )
    if not result.images:
        return [], "the question has no image of its own"
    if grounding.cropped:
        return [], "the processor crops the image, so that the places are not of the whole one"
    sizes: tuple[tuple[float, float], ...] = grounding.seen
    if scale != "pixels":
        sizes = ((scale, scale),) * len(result.images)
    elif len(sizes) != len(result.images):
        return [], "the size of the image that the model saw is not known"
    text = (grounding.marked or result.text)[:LONGEST]
    written = first(dialect.read(text, result.prompt), MOST)
    found = list(_mapped(written, result.images, sizes, dialect.offset, grounding.earlier_images))
    if len(found) == len(written):
        return found, ""
    return found, "the answer does not say on which of the images a place is"


def _dialect(grounding: Grounding) -> tuple[Dialect | None, Scale | None]:
    if grounding.dialect is not None:
        return dialects.BY_NAME.get(grounding.dialect), grounding.scale
    if grounding.scale is not None:
        return dialects.BY_NAME["json"], grounding.scale
    found = dialects.of_architecture(grounding.model_type)
    return found, None if found is None else found.scale


def _mapped(
    written: list[Written],
    images: tuple[ImageInput, ...],
    sizes: tuple[tuple[float, float], ...],
    offset: float,
    earlier: int,
) -> Iterator[Box | Point]:
    alone = len(images) == 1 and earlier == 0
    for each in written:
        # With images of earlier turns it is not known from where a model counts.
        named = 0 if each.image is None or earlier else each.image
        if not (1 <= named <= len(images)):
            if not alone or each.image is not None:
                continue
            named = 1
        width, height = images[named - 1].original_size
        seen_width, seen_height = sizes[named - 1]
        xs = [(x + offset) * width / seen_width for x in each.numbers[0::2]]
        ys = [(y + offset) * height / seen_height for y in each.numbers[1::2]]
        label = shown(each.label)
        xs_inside = [min(max(x, 0.0), float(width)) for x in xs]
        ys_inside = [min(max(y, 0.0), float(height)) for y in ys]
        clipped = (xs_inside, ys_inside) != (xs, ys)
        if len(xs) == 1:
            yield Point(xs_inside[0], ys_inside[0], label, named - 1, clipped)
            continue
        inverted = xs[0] > xs[1] or ys[0] > ys[1]
        (x1, x2), (y1, y2) = sorted(xs_inside), sorted(ys_inside)
        yield Box(x1, y1, x2, y2, label, named - 1, clipped, inverted)
