"""Opens images from values of many types; the public entry of this package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_magic.argument_checks import short_repr
from mlx_magic.errors import ImageTooLargeError, RequestError
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
    from mlx_magic.images.sources import FileNames, Finder, Source

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_IMAGES",
    "MAX_PIXELS_DECODED",
    "MAX_PIXELS_TOTAL",
    "ImageInput",
    "TakenImages",
    "Thumbnail",
    "open_images",
    "open_named_images",
    "take_images",
]


def open_images(
    value: Any,
    *,
    name: str | None = None,
    max_pixels: int | None = None,
    normalize: bool = True,
    base: Path | None = None,
    fetch: Fetcher | None = None,
    cancel: CancelToken | None = None,
) -> list[ImageInput]:
    """Open every image in `value`. Thread-safe; only URLs in `value` are fetched.

    Parameters
    ----------
    value : object
        A path, a glob, an http(s) URL, a data URI or base64 as a str; a Path; bytes; an open
        binary file; a Pillow image; a NumPy array (or an object with ``__array__``); a matplotlib
        figure or axes; an object with a PNG or JPEG representation; an earlier `VisionResult` or
        `ImageInput`; a column of pandas, polars, pyarrow or a Hugging Face dataset; a record with
        an image inside; the value of a FileUpload; or a list, tuple or iterator of these.
    name : str, optional
        Name for messages and `source` if `value` is not a str, usually its expression.
    max_pixels : int, optional
        Images with more pixels are scaled down to at most this many, keeping the aspect ratio.
    normalize : bool
        Whether numbers wider than 8 bits are scaled to what their values need; see `value_range`.
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
        If `max_pixels` is not an int of 1 or more, or `normalize` not a bool.
    Cancelled
        If `cancel` was cancelled.
    """
    return open_named_images(
        [(name, value)],
        max_pixels=max_pixels,
        normalize=normalize,
        base=base,
        fetch=fetch,
        cancel=cancel,
    )


def open_named_images(
    values: Iterable[tuple[str | None, Any]],
    *,
    max_pixels: int | None = None,
    normalize: bool = True,
    base: Path | None = None,
    fetch: Fetcher | None = None,
    cancel: CancelToken | None = None,
) -> list[ImageInput]:
    """Open the images of a request, from values with names.

    Like `open_images`, with one limit for all values. All values are inspected before the first
    image is decoded or fetched.

    Parameters
    ----------
    values : iterable of (str or None, object)
        Name and value of each.
    max_pixels, normalize, base, fetch, cancel
        As for `open_images`.

    Raises
    ------
    ImageError, RequestError, Cancelled
        As for `open_images`.
    """
    taken = take_images(
        values, max_pixels=max_pixels, normalize=normalize, base=base, fetch=fetch, cancel=cancel
    )
    taken.read()
    return taken.open(cancel)


def take_images(
    values: Iterable[tuple[str | None, Any]],
    *,
    max_pixels: int | None = None,
    normalize: bool = True,
    base: Path | None = None,
    fetch: Fetcher | None = None,
    cancel: CancelToken | None = None,
) -> TakenImages:
    """Take from values what can change, so that they can be opened later, on another thread.

    Arrays and Pillow images are copied, figures drawn, open files read, and iterators drained,
    all on this thread. `TakenImages.read` then reads local files.

    Parameters
    ----------
    values, max_pixels, normalize, base, fetch, cancel
        As for `open_named_images`.

    Raises
    ------
    ImageError, RequestError, Cancelled
        As for `open_images`.
    """
    fit_pixels((1, 1), max_pixels)
    if not isinstance(normalize, bool):
        raise RequestError(
            f"normalize is {short_repr(normalize)}: use True or False.", option="normalize"
        )
    given = list(values)
    if not given:
        return TakenImages(None, max_pixels, normalize)
    # Imported here, since it imports Pillow and the decoders.
    from mlx_magic.images.sources import Finder

    finder = Finder(base=base, fetch=fetch, cancel=cancel, normalize=normalize)
    for name, value in given:
        finder.find(value, name)
    return TakenImages(finder, max_pixels, normalize)


class TakenImages:
    """Images of a request, as they were when they were taken. Made by `take_images`."""

    def __init__(self, finder: Finder | None, max_pixels: int | None, normalize: bool) -> None:
        self._finder = finder
        self._max_pixels = max_pixels
        self._normalize = normalize

    def __bool__(self) -> bool:
        return self._finder is not None

    @property
    def has_files(self) -> bool:
        """Whether there are local files to read."""
        return self._finder is not None and self._finder.has_files

    def read(self) -> None:
        """Read the local files; on any thread.

        Raises
        ------
        ImageError, Cancelled
            As for `open_images`.
        """
        if self.has_files:
            assert self._finder is not None
            self._finder.read()

    def open(self, cancel: CancelToken | None = None) -> list[ImageInput]:
        """Decode all images, and fetch those given by URL; on any thread, and only once.

        Raises
        ------
        ImageError, Cancelled
            As for `open_images`.
        """
        self.read()
        sources = [] if self._finder is None else self._finder.found
        if self._finder is not None:
            self._finder.forget()
        images: list[ImageInput] = []
        total = 0
        for at, source in enumerate(sources):
            if cancel is not None:
                cancel.checkpoint()
            image = self._opened(source, cancel)
            # Its array or file is not needed any more, except as a part of the image.
            sources[at] = image
            total += image.size[0] * image.size[1]
            if total > MAX_PIXELS_TOTAL:
                raise ImageTooLargeError(
                    f"The images up to {image.source} have {total / 1e6:.0f} megapixels "
                    f"together, the limit is {MAX_PIXELS_TOTAL // 1_000_000}: set max_pixels.",
                    source=image.source,
                    size=total,
                    limit=MAX_PIXELS_TOTAL,
                )
            images.append(image)
        return images

    def _opened(
        self, source: Source | ImageInput | FileNames, cancel: CancelToken | None
    ) -> ImageInput:
        from mlx_magic.images.sources import Source

        if isinstance(source, Source):
            opened = source.load(cancel)
            return make_image_input(
                opened.decoded.pixels,
                source.label,
                notes=opened.decoded.notes,
                max_pixels=self._max_pixels,
                encoded=opened.encoded,
                normalized=self._normalize if opened.decoded.deep else None,
            )
        assert isinstance(source, ImageInput)
        image = _with_normalize(source, self._normalize, cancel)
        if fit_pixels(image.size, self._max_pixels) == image.size:
            return image
        return make_image_input(
            image.pixels,
            image.source,
            original_size=image.original_size,
            notes=[image.note] if image.note else [],
            max_pixels=self._max_pixels,
            # Of one that was scaled before, the file would give other pixels.
            encoded=image.stored.file if image.size == image.original_size else None,
            normalized=image.normalized,
        )


def _with_normalize(image: ImageInput, normalize: bool, cancel: CancelToken | None) -> ImageInput:
    """Return an opened image as if it had been opened with `normalize`.

    Raises
    ------
    RequestError
        If its numbers were not kept.
    """
    if image.normalized is None or image.normalized == normalize:
        return image
    from mlx_magic.images.decoding.decode import decode_bytes
    from mlx_magic.images.stored import Encoded

    file = image.stored.file
    if file is None:
        raise RequestError(
            f"{image.source} was opened with normalize={image.normalized}, and only its pixels "
            "were kept: give the array again.",
            option="normalize",
        )
    decoded = decode_bytes(file.data, image.source, cancel, frame=file.frame, normalize=normalize)
    width, height = image.original_size
    return make_image_input(
        decoded.pixels,
        image.source,
        notes=decoded.notes,
        max_pixels=None if image.size == (width, height) else image.size[0] * image.size[1],
        encoded=Encoded(file.data, file.frame, normalize),
        normalized=normalize,
    )
