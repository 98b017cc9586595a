"""Finds the images in a value, as a flat list of sources that are read later."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mlx_magic.errors import FetchError, ImageDecodeError, ImageError
from mlx_magic.formatting import amount, short_label
from mlx_magic.images import files, objects
from mlx_magic.images.arrays import ArrayImages, array_images
from mlx_magic.images.decoding.decode import Decoded, decode_bytes, decode_image
from mlx_magic.images.decoding.quiet_libraries import quiet
from mlx_magic.images.decoding.stoppable_file import DecodeDeadline
from mlx_magic.images.image import ImageInput
from mlx_magic.images.limits import MAX_IMAGES, check_bytes

if TYPE_CHECKING:
    from mlx_magic.cancellation import CancelToken
    from mlx_magic.images.http.fetch import Fetcher

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Source:
    """An image that was found but not read yet.

    Attributes
    ----------
    label : str
        The name given by the user, shortened.
    load : callable
        Reads and decodes it.
    """

    label: str
    load: Callable[[], Decoded]


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds the images in values, without reading or fetching them.

    Parameters
    ----------
    base : Path or None
        Base of relative paths; None is the current folder.
    fetch : Fetcher or None
        Fetches URLs; None is a `UrlFetcher`.
    cancel : CancelToken or None
        Stops a fetch.

    Attributes
    ----------
    found : list of Source or ImageInput
        What was found so far, in order.
    """

    base: Path | None = None
    fetch: Fetcher | None = None
    cancel: CancelToken | None = None
    found: list[Source | ImageInput] = field(default_factory=list, init=False)

    def find(self, value: Any, name: str | None = None) -> None:
        """Add the images in `value` to `found`, in order.

        Raises
        ------
        ImageError
            If a value is not an image, there is no image, or there are too many.
        """
        before = len(self.found)
        self._walk(value, name, depth=0)
        if len(self.found) == before:
            what = short_label(name) if name else "The list of images"
            raise ImageError(f"{what} is empty: there is no image in it.", source=what)

    def _walk(self, value: Any, name: str | None, depth: int) -> None:
        label = short_label(name) if name else objects.describe_object(value)
        items = _items(value, label)
        if items is not None:
            if depth >= _MAX_DEPTH:
                raise ImageError(f"{label} is nested too deep: give a flat list.", source=label)
            for key, item in items:
                self._walk(item, f"{name or 'list'}[{key}]", depth + 1)
        elif isinstance(value, ImageInput):
            self._add(value)
        elif (images := _result_images(value)) is not None:
            if not images:
                raise ImageError(
                    f"{label} is an answer to a question without images.", source=label
                )
            for image in images:
                self._add(image)
        else:
            self._single(value, label, named=name is not None)

    def _single(self, value: Any, label: str, *, named: bool) -> None:
        objects.refuse_closed(value, label)
        if isinstance(value, str):
            self._string(str(value))
        elif isinstance(value, os.PathLike):
            self._files(os.fsdecode(value))
        elif isinstance(value, (bytes, bytearray, memoryview)):
            check_bytes(memoryview(value).nbytes, label)
            shown = label if named else f"bytes ({amount(memoryview(value).nbytes)})"
            self._add(Source(shown, partial(decode_bytes, bytes(value), shown, self.cancel)))
        elif isinstance(value, Image.Image):
            self._add(Source(label, partial(decode_image, value, label, self.cancel)))
        else:
            self._object(value, label)

    def _object(self, value: Any, label: str) -> None:
        render = objects.renderer(value, label, self.cancel)
        if render is not None:
            self._add(Source(label, lambda: decode_bytes(render(), label, self.cancel)))
            return
        url = objects.displayed_url(value)
        if url is not None:
            self._string(url)
            return
        array = objects.as_array(value, label)
        if array is None:
            raise ImageDecodeError(objects.refusal_message(value, label), source=label)
        if array.dtype.kind in "OU" and array.ndim:
            # Not .tolist(): a broadcast array may be a million times larger than it looks.
            self._walk(iter(array.flat), label, depth=_MAX_DEPTH - 1)
            return
        images = array_images(array, label)
        for index in range(len(images)):
            shown = f"{label}[{index}]" if array.ndim == 4 else label
            self._add(Source(shown, partial(_array_image, images, index, shown, self.cancel)))

    def _string(self, text: str) -> None:
        if files.is_data_uri(text):
            label = files.data_uri_label(text)
            self._add(
                Source(
                    label,
                    lambda: decode_bytes(files.read_data_uri(text, label), label, self.cancel),
                )
            )
            return
        scheme = _SCHEME.match(text.strip())
        if scheme is None:
            self._files(text)
            return
        label = short_label(text.strip())
        if scheme[1].lower() not in ("http", "https"):
            advice = "Give the path." if scheme[1].lower() == "file" else "Download it first."
            raise FetchError(
                f"{label}: only http and https addresses are fetched. {advice}", source=label
            )
        self._add(Source(label, partial(self._fetched, text.strip(), label)))

    def _fetched(self, url: str, label: str) -> Decoded:
        fetch = self.fetch
        if fetch is None:
            from mlx_magic.images.http.fetch import UrlFetcher

            fetch = UrlFetcher()
        return decode_bytes(fetch(url, cancel=self.cancel), label, self.cancel)

    def _files(self, text: str) -> None:
        for path in files.find_files(text, self.base, self.cancel):
            label = files.path_label(path, text, self.base)
            self._add(Source(label, partial(_read_path, path, label, self.cancel)))

    def _add(self, source: Source | ImageInput) -> None:
        if len(self.found) >= MAX_IMAGES:
            label = source.source if isinstance(source, ImageInput) else source.label
            raise ImageError(
                f"At most {MAX_IMAGES} images fit in one request, {label} is one too many.",
                source=label,
            )
        self.found.append(source)


def _read_path(path: Path, label: str, cancel: CancelToken | None) -> Decoded:
    return decode_bytes(files.read_file(path, label, cancel), label, cancel)


def _array_image(
    images: ArrayImages, index: int, label: str, cancel: CancelToken | None
) -> Decoded:
    with quiet():
        image, notes = images.image_at(index, DecodeDeadline(label, cancel).checkpoint)
    decoded = decode_image(image, label, cancel, owned=True)
    return Decoded(decoded.pixels, (*notes, *decoded.notes))


def _items(value: Any, label: str) -> Iterable[tuple[object, Any]] | None:
    """Return keys and values of a list, an iterator or a pandas Series; None for the rest."""
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    if objects.is_series(value):
        return objects.series_items(value, label)
    # For example Path("images").glob("*.png"). An open file is an iterator, too, but an image.
    if isinstance(value, Iterator) and not hasattr(value, "read"):
        return enumerate(value)
    return None


def _result_images(value: Any) -> tuple[ImageInput, ...] | None:
    """Return the images of a `VisionResult`; None for other values."""
    # Recognized by its fields: this package must not import the class.
    fields = getattr(type(value), "__dataclass_fields__", ())
    images = getattr(value, "images", None) if "finish_reason" in fields else None
    if isinstance(images, tuple) and all(isinstance(image, ImageInput) for image in images):
        return images
    return None
