"""Opens images from values of many types; the public entry of this package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_magic.errors import ImageTooLargeError
from mlx_magic.images.image import (
    ImageInput,
    Thumbnail,
    fit_pixels,
    make_image_input,
)
from mlx_magic.images.limits import (
    MAX_FILE_BYTES,
    MAX_IMAGES,
    MAX_PIXELS_DECODED,
    MAX_PIXELS_TOTAL,
)

if TYPE_CHECKING:
    from mlx_magic.cancellation import CancelToken
    from mlx_magic.images.http.fetch import Fetcher
    from mlx_magic.images.sources import Source

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_IMAGES",
    "MAX_PIXELS_DECODED",
    "MAX_PIXELS_TOTAL",
    "ImageInput",
    "Thumbnail",
    "open_images",
    "open_named_images",
]


def open_images(
    value: Any,
    *,
    name: str | None = None,
    max_pixels: int | None = None,
    base: Path | None = None,
    fetch: Fetcher | None = None,
    cancel: CancelToken | None = None,
) -> list[ImageInput]:
    """Open every image in `value`. Thread-safe; only URLs in `value` are fetched.

    Parameters
    ----------
    value : object
        A path, a glob, an http(s) URL or a data URI as a str; a Path; bytes; an open binary
        file; a Pillow image; a NumPy array (or an object with ``__array__``); a matplotlib figure
        or axes; an object with a PNG or JPEG representation; an earlier `VisionResult` or
        `ImageInput`; a pandas Series; or a list, tuple or iterator of these.
    name : str, optional
        Name for messages and `source` if `value` is not a str, usually its expression.
    max_pixels : int, optional
        Images with more pixels are scaled down to at most this many, keeping the aspect ratio.
    base : Path, optional
        Base of relative paths; the current folder by default.
    fetch : Fetcher, optional
        Fetches URLs; a `UrlFetcher` by default.
    cancel : CancelToken, optional
        Checked between images, during a fetch and while an image is decoded.

    Returns
    -------
    list of ImageInput
        At least one.

    Raises
    ------
    ImageNotFoundError
        If a file is missing or a glob matches nothing.
    ImageDecodeError
        If a value is not an image, or is damaged or truncated.
    ImageTooLargeError
        If an image, its file, or all images together exceed a limit.
    FetchError
        If a URL was refused or could not be fetched.
    ImageError
        If there is no image, or more than `MAX_IMAGES`.
    RequestError
        If `max_pixels` is not an int of 1 or more.
    Cancelled
        If `cancel` was cancelled.
    """
    return open_named_images(
        [(name, value)], max_pixels=max_pixels, base=base, fetch=fetch, cancel=cancel
    )


def open_named_images(
    values: Iterable[tuple[str | None, Any]],
    *,
    max_pixels: int | None = None,
    base: Path | None = None,
    fetch: Fetcher | None = None,
    cancel: CancelToken | None = None,
) -> list[ImageInput]:
    """Open the images of a request, from values with names.

    Like `open_images`, with one limit for all values. All values are inspected before the first
    image is read or fetched.

    Parameters
    ----------
    values : iterable of (str or None, object)
        Name and value of each.
    max_pixels, base, fetch, cancel
        As for `open_images`.

    Raises
    ------
    ImageError, RequestError, Cancelled
        As for `open_images`.
    """
    # Imported here, since it imports Pillow and the decoders.
    from mlx_magic.images.sources import Finder

    fit_pixels((1, 1), max_pixels)
    finder = Finder(base=base, fetch=fetch, cancel=cancel)
    for name, value in values:
        finder.find(value, name)
    images: list[ImageInput] = []
    total = 0
    for source in finder.found:
        if cancel is not None:
            cancel.checkpoint()
        image = _open(source, max_pixels)
        total += image.size[0] * image.size[1]
        if total > MAX_PIXELS_TOTAL:
            raise ImageTooLargeError(
                f"The images up to {image.source} have {total / 1e6:.0f} megapixels together, "
                f"the limit is {MAX_PIXELS_TOTAL // 1_000_000}: set max_pixels.",
                source=image.source,
                size=total,
                limit=MAX_PIXELS_TOTAL,
            )
        images.append(image)
    return images


def _open(source: Source | ImageInput, max_pixels: int | None) -> ImageInput:
    if not isinstance(source, ImageInput):
        decoded = source.load()
        return make_image_input(
            decoded.pixels, source.label, notes=decoded.notes, max_pixels=max_pixels
        )
    if fit_pixels(source.size, max_pixels) == source.size:
        return source
    return make_image_input(
        source.pixels,
        source.source,
        original_size=source.original_size,
        notes=[source.note] if source.note else [],
        max_pixels=max_pixels,
    )
