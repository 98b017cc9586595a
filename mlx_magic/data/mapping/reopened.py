"""Images of rows: what is known about them, without their pixels, which are opened again."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_magic.data.mapping.rows import MapImage
from mlx_magic.errors import ImageError
from mlx_magic.images.image import ImageInput
from mlx_magic.images.stored import Encoded, StoredPixels, to_png

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known about an image that was opened once.

    Attributes
    ----------
    digest : str
        See `ImageInput`.
    size, original_size : tuple of int
        Width and height, in pixels.
    note : str or None
    normalized : bool or None
    """

    digest: str
    size: tuple[int, int]
    original_size: tuple[int, int]
    note: str | None = None
    normalized: bool | None = None

    @classmethod
    def of(cls, image: ImageInput) -> ImageFacts:
        """Return what is known about an open image."""
        return cls(image.digest, image.size, image.original_size, image.note, image.normalized)

    def to_json(self) -> str:
        """Return the facts as JSON."""
        return json.dumps(
            [self.digest, *self.size, *self.original_size, self.note, self.normalized]
        )

    @classmethod
    def from_json(cls, text: str) -> ImageFacts | None:
        """Return the facts of `to_json`; None if they are damaged."""
        try:
            digest, width, height, whole_width, whole_height, note, normalized = json.loads(text)
        except (ValueError, TypeError):
            return None
        sizes = (width, height, whole_width, whole_height)
        if not isinstance(digest, str) or not all(type(side) is int for side in sizes):
            return None
        if not (note is None or isinstance(note, str)) or normalized not in (None, True, False):
            return None
        return cls(digest, (width, height), (whole_width, whole_height), note, normalized)

    def image(self, source: MapImage, max_pixels: int | None, normalize: bool) -> ImageInput:
        """Return the image, whose pixels are opened again when they are used."""
        return ImageInput(
            ReopenedPixels(self.size, source, max_pixels, normalize),
            source.source,
            self.original_size,
            self.digest,
            self.note,
            normalized=self.normalized,
        )


class ReopenedPixels(StoredPixels):
    """Pixels of a row's image. Nothing is held; each use opens the image again.

    Parameters
    ----------
    size : tuple of int
        Width and height.
    image : MapImage
    max_pixels, normalize
        Those of the map.
    """

    __slots__ = ("_image", "_options")

    def __init__(
        self, size: tuple[int, int], image: MapImage, max_pixels: int | None, normalize: bool
    ) -> None:
        self.size = size
        self._image = image
        self._options = max_pixels, normalize
        self._encoded = self._held = None
        self._from_file = False
        self._seen: Callable[[], Image.Image | None] = _no_pixels
        self._lock = threading.Lock()

    @property
    def pixels(self) -> Image.Image:
        """The pixels.

        Raises
        ------
        ImageError
            The image is gone, or is another one now.
        """
        with self._lock:
            pixels = self._seen()
            if pixels is None:
                max_pixels, normalize = self._options
                image, changed = self._image.open(max_pixels=max_pixels, normalize=normalize)
                if changed:
                    name = self._image.source
                    raise ImageError(f"{name} has changed since the map.", source=name)
                pixels = image.pixels
                self._seen = weakref.ref(pixels)
            return pixels

    @property
    def encoded(self) -> Encoded:
        """The pixels as a file, made at each use."""
        return Encoded(to_png(self.pixels))

    @property
    def file(self) -> None:
        """None: the file is not held."""
        return

    @property
    def nbytes(self) -> int:
        """Bytes held: none."""
        return 0

    def release(self) -> None:
        """Do nothing: nothing is held."""

    def pack(self) -> None:
        """Do nothing: nothing is held."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ReopenedPixels, (self.size, self._image, *self._options)


def _no_pixels() -> None:
    return None
