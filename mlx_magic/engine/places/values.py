"""`Box` and `Point`: places in pixels of an upright original, and tuples of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mlx_magic.errors import RequestError, ShortTraceback

if TYPE_CHECKING:
    from mlx_magic.images.image import ImageInput


@dataclass(frozen=True, slots=True)
class Box:
    """A box on an image. ``(0, 0)`` is the upper left corner of the image.

    Attributes
    ----------
    x1, y1, x2, y2 : float
        Left, upper, right and lower edge, in pixels of the upright original. They are within the
        image, and in order.
    label : str
        What the model calls it, on one line; ``""`` if it says nothing.
    image : int
        Index of the image in ``result.images``.
    clipped : bool
        Whether a part of the box, or all of it, was outside of the image.
    inverted : bool
        Whether the model gave its edges in the wrong order.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    image: int = 0
    clipped: bool = False
    inverted: bool = False

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """Left, upper, right and lower edge, in pixels."""
        return self.x1, self.y1, self.x2, self.y2

    @property
    def xywh(self) -> tuple[float, float, float, float]:
        """Left and upper edge, width and height, in pixels, as in COCO."""
        return self.x1, self.y1, self.x2 - self.x1, self.y2 - self.y1

    @property
    def area(self) -> float:
        """Square pixels."""
        return (self.x2 - self.x1) * (self.y2 - self.y1)


@dataclass(frozen=True, slots=True)
class Point:
    """A point on an image.

    Attributes
    ----------
    x, y : float
        Pixels of the upright original, from its upper left corner. They are within the image.
    label, image
        See `Box`.
    clipped : bool
        Whether the point was outside of the image.
    """

    x: float
    y: float
    label: str = ""
    image: int = 0
    clipped: bool = False

    @property
    def xy(self) -> tuple[float, float]:
        """Both coordinates, in pixels."""
        return self.x, self.y


_Place = TypeVar("_Place", bound=Box | Point)


class _Places(tuple[_Place, ...]):
    """A tuple of places that knows the images they are on.

    Attributes
    ----------
    images : tuple of ImageInput
        The images of the question.
    note : str
        Why there are none, or why some are left out; ``""`` otherwise.
    """

    images: tuple[ImageInput, ...]
    note: str

    def __new__(
        cls, places: Iterable[_Place] = (), images: Iterable[ImageInput] = (), note: str = ""
    ) -> _Places[_Place]:
        made = super().__new__(cls, places)
        made.images = tuple(images)
        made.note = note
        return made

    @property
    def labels(self) -> list[str]:
        """The different labels, in the order in which they first occur."""
        return list(dict.fromkeys(place.label for place in self))


class Points(_Places[Point]):
    """The points of an answer. See `_Places`."""


class Boxes(_Places[Box]):
    """The boxes of an answer. See `_Places`."""

    def to_coco(self) -> dict[str, list[dict[str, Any]]]:
        """Return the boxes in COCO's format for object detection.

        Returns
        -------
        dict
            ``images`` (id, file_name, width, height), ``annotations`` (id, image_id,
            category_id, bbox as x, y, width and height in pixels, area, iscrowd, segmentation)
            and ``categories`` (id, name). An image's id is its index, categories and
            annotations are counted from 1, as in the files of COCO. Source of the format: the
            page "Data format" of cocodataset.org.
        """
        category = {label: number for number, label in enumerate(self.labels, start=1)}
        return {
            "images": [
                {
                    "id": number,
                    "file_name": image.source,
                    "width": image.original_size[0],
                    "height": image.original_size[1],
                }
                for number, image in enumerate(self.images)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": box.image,
                    "category_id": category[box.label],
                    "bbox": list(box.xywh),
                    "area": box.area,
                    "iscrowd": 0,
                    "segmentation": [],
                }
                for number, box in enumerate(self, start=1)
            ],
            "categories": [{"id": number, "name": label} for label, number in category.items()],
        }

    def to_supervision(self, image: int | None = None) -> Any:
        """Return the boxes of one image as ``supervision.Detections``.

        Parameters
        ----------
        image : int, optional
            Index of the image; needed if the boxes are on several images.

        Returns
        -------
        supervision.Detections
            ``xyxy`` of shape (boxes, 4), float32, in pixels; ``class_id`` of shape (boxes,) counts
            from 0 in the order of `labels`; ``data["class_name"]`` has the labels.

        Raises
        ------
        RequestError
            supervision is not installed; the boxes are on several images and none was named; there
            is no such image.
        """
        with ShortTraceback():
            wanted = self._one_image(image)
            supervision = _supervision()
        import numpy as np

        boxes = [box for box in self if box.image == wanted]
        known = self.labels
        return supervision.Detections(
            xyxy=np.array([box.xyxy for box in boxes], dtype=np.float32).reshape(-1, 4),
            class_id=np.array([known.index(box.label) for box in boxes], dtype=int),
            data={"class_name": np.array([box.label for box in boxes], dtype=str)},
        )

    def _one_image(self, image: int | None) -> int:
        used = sorted({box.image for box in self})
        if image is None:
            if len(used) > 1:
                raise RequestError(
                    f"The boxes are on {len(used)} images: name one, such as "
                    f"to_supervision(image={used[0]}).",
                    option="image",
                )
            return used[0] if used else 0
        if not 0 <= image < max(len(self.images), 1):
            raise RequestError(
                f"There is no image {image}: the question has {len(self.images)}, counted from 0.",
                option="image",
            )
        return image


def _supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise RequestError(
            "to_supervision() needs supervision, which is not installed: run "
            "%pip install supervision."
        ) from error
    return supervision
