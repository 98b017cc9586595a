"""Finds the images in a value, and takes what can change; decoding may come later.

Arrays, Pillow images and figures can change after a question was asked, files can be overwritten,
and an iterator may give the same buffer again. So all of these are read or copied at once, in
order: `Finder.find` takes objects, on the thread that calls it, and `Finder.read` takes the bytes
of files, on any thread. The sources that they find only decode and fetch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import (
    FetchError,
    ImageDecodeError,
    ImageError,
    ImageTooLargeError,
    MlxMagicError,
)
from mlx_magic.formatting import amount, reason, short_label
from mlx_magic.images import files, objects
from mlx_magic.images.arrays import (
    ArrayImages,
    FrameGroup,
    array_images,
    owner_of,
    taken_bytes,
)
from mlx_magic.images.color_modes import DARK_MASK
from mlx_magic.images.decoding.decode import (
    Decoded,
    decode_bytes,
    decode_image,
    file_of,
    turned_note,
    unread_file,
)
from mlx_magic.images.decoding.quiet_libraries import quiet
from mlx_magic.images.decoding.stoppable_file import DecodeDeadline
from mlx_magic.images.foreign import containers, figures
from mlx_magic.images.image import ImageInput
from mlx_magic.images.limits import MAX_IMAGES, MAX_TAKEN_BYTES, check_bytes
from mlx_magic.images.stored import Encoded
from mlx_magic.images.typed import pasted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlx_magic.images.http.fetch import Fetcher

Load = Callable[[CancelToken | None], "Opened"]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Opened:
    """A decoded image, and the file that it came from, if it came from one."""

    decoded: Decoded
    encoded: Encoded | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """An image that was taken but not decoded yet.

    Attributes
    ----------
    label : str
        The name given by the user, shortened.
    load : callable
        Fetches it if it is a URL, and decodes it.
    """

    label: str
    load: Load


@dataclass(frozen=True, slots=True)
class FileNames:
    """A path or a glob whose files were not read yet."""

    text: str


@dataclass(slots=True)
class Finder:
    """Finds and takes the images in values, without decoding or fetching them.

    Parameters
    ----------
    base : Path or None
        Base of relative paths; None is the current folder.
    fetch : Fetcher or None
        Fetches URLs; None is a `UrlFetcher`.
    cancel : CancelToken or None
        Checked between images.
    normalize : bool
        See `value_range`.

    Attributes
    ----------
    found : list of Source, ImageInput or FileNames
        What was found so far, in order. There are no `FileNames` after `read`.
    """

    base: Path | None = None
    fetch: Fetcher | None = None
    cancel: CancelToken | None = None
    normalize: bool = True
    found: list[Source | ImageInput | FileNames] = field(default_factory=list, init=False)
    _taken: int = field(default=0, init=False)
    # With the objects, so that their ids stay theirs.
    _groups: dict[tuple[int, str], tuple[Any, FrameGroup]] = field(default_factory=dict, init=False)
    _files: dict[int, tuple[Any, bytes]] = field(default_factory=dict, init=False)

    def find(self, value: Any, name: str | None = None) -> None:
        """Take the images in `value`, in order, and add them to `found`.

        Raises
        ------
        ImageError
            If a value is not an image, there is no image, or there are too many.
        """
        before = len(self.found)
        try:
            self._walk(value, name, depth=0)
        except (MlxMagicError, MemoryError, Cancelled):
            raise
        # Foreign code: methods of the value, which may raise anything.
        except Exception as error:
            what = short_label(name) if name else objects.describe_object(value)
            raise ImageError(f"{what} cannot be read: {reason(error)}.", source=what) from error
        if len(self.found) == before:
            what = short_label(name) if name else "The list of images"
            raise ImageError(f"{what} is empty: there is no image in it.", source=what)

    @property
    def has_files(self) -> bool:
        """Whether there are files to read."""
        return any(isinstance(each, FileNames) for each in self.found)

    def read(self) -> None:
        """Read all files that were found; on any thread.

        Raises
        ------
        ImageError
            If there is no such file, or it cannot be read.
        """
        waiting, self.found = self.found, []
        # All names are looked up before the first file is read.
        paths = {
            at: files.find_files(each.text, self.base, self.cancel)
            for at, each in enumerate(waiting)
            if isinstance(each, FileNames)
        }
        for at, each in enumerate(waiting):
            if not isinstance(each, FileNames):
                self._add(each)
                continue
            for path in paths[at]:
                self._checkpoint()
                label = files.path_label(path, each.text, self.base)
                self._check_count(label)
                self._add_file(files.read_file(path, label, self.cancel), label)

    def forget(self) -> None:
        """Drop what only finding needs: arrays and files of which parts were taken."""
        self._files.clear()
        self._groups.clear()

    def _walk(self, value: Any, name: str | None, depth: int) -> None:
        self._checkpoint()
        value = containers.scalar(containers.widget_value(value))
        label = short_label(name) if name else objects.describe_object(value)
        drawn = _figures_of_axes(value)
        items = containers.column_items(value, label) or containers.sequence_items(value)
        if drawn is not None:
            for at, figure in enumerate(drawn):
                self._walk(figure, name if len(drawn) == 1 else f"{name or 'list'}[{at}]", depth)
        elif items is not None:
            if depth >= _MAX_DEPTH:
                raise ImageError(f"{label} is nested too deep: give a flat list.", source=label)
            # Each item is taken before the next one is asked for: it may be the same buffer.
            for key, item in _guarded(items, label):
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
        elif (record := containers.record_image(value, label)) is not None:
            image, image_name = record
            # The name of the file, which tells more than its place in a column.
            self._walk(image, short_label(image_name) if image_name else name, depth + 1)
        else:
            self._single(value, label, named=name is not None)

    def _single(self, value: Any, label: str, *, named: bool) -> None:
        objects.refuse_closed(value, label)
        if isinstance(value, str):
            self._string(str(value))
        elif isinstance(value, os.PathLike):
            self._add(FileNames(os.fsdecode(value)))
        elif isinstance(value, (bytes, bytearray, memoryview)):
            self._buffer(value, label, named=named)
        elif isinstance(value, Image.Image):
            self._pillow(value, label)
        else:
            self._object(value, label, named=named)

    def _buffer(self, value: Any, label: str, *, named: bool) -> None:
        size = memoryview(value).nbytes
        check_bytes(size, label)
        self._add_file(bytes(value), label if named else f"bytes ({amount(size)})")

    def _pillow(self, image: Image.Image, label: str) -> None:
        self._check_count(label)
        file = self._unread_file(image)
        if file is not None:
            data, frame = file
            self._add(Source(label, partial(_decoded_page, data, label, frame, self.normalize)))
            return
        decoded = decode_image(image, label, self.cancel, normalize=self.normalize)
        self._count_bytes(4 * decoded.pixels.size[0] * decoded.pixels.size[1], label)
        self._add(Source(label, lambda _: Opened(decoded)))

    def _unread_file(self, image: Image.Image) -> tuple[bytes, int] | None:
        """Return the file and the frame of an image that was opened but not read yet."""
        _, data = self._files.get(id(image), (None, b""))
        if not data:
            try:
                data = file_of(image)
            # Closed, or an object with a file of its own: it is read as an image.
            except Exception:
                return None
            if not data:
                return None
            # The pages of one file are taken with one copy of it.
            self._files[id(image)] = image, data
        return unread_file(image, data)

    def _object(self, value: Any, label: str, *, named: bool) -> None:
        render = objects.renderer(value, label, self.cancel)
        if render is not None:
            self._check_count(label)
            self._add_file(render(), label)
            return
        url = objects.displayed_url(value)
        if url is not None:
            self._string(url)
            return
        array = objects.as_array(value, label)
        if array is not None:
            self._array(array, label, named=named)
            return
        buffer = objects.as_buffer(value)
        if buffer is not None:
            self._buffer(buffer, label, named=named)
            return
        shown = objects.bundled_image(value, label)
        if shown is not None:
            self._check_count(label)
            self._add_file(shown, label)
            return
        raise ImageDecodeError(objects.refusal_message(value, label), source=label)

    def _array(self, array: NDArray[Any], label: str, *, named: bool) -> None:
        if array.dtype.kind in "OU" and array.ndim:
            # Not .tolist(): a broadcast array may be a million times larger than it looks.
            self._walk(iter(array.flat), label, depth=_MAX_DEPTH - 1)
            return
        encoded = objects.encoded_file(array)
        if encoded is not None:
            self._buffer(encoded, label, named=named)
            return
        images = array_images(array, label, normalize=self.normalize)
        self._check_count(label, len(images))
        self._count_bytes(taken_bytes(images.batch), label)
        owner = owner_of(array)
        key = (id(owner), array.dtype.str)
        _, group = self._groups.setdefault(key, (owner, FrameGroup()))
        images.take()
        images.join(group)
        for index in range(len(images)):
            shown = f"{label}[{index}]" if array.ndim == 4 else label
            self._add(Source(shown, partial(_array_image, images, index, shown)))

    def _string(self, text: str) -> None:
        inner = pasted.unwrapped(text)
        if pasted.is_data_uri(inner):
            label = pasted.data_uri_label(inner)
            self._check_count(label)
            self._add_file(pasted.read_data_uri(inner, label), label)
            return
        scheme = _SCHEME.match(inner)
        if scheme is None:
            if pasted.looks_like_base64(inner) and not files.exists(text, self.base):
                label = pasted.base64_label(inner)
                self._check_count(label)
                self._add_file(pasted.read_base64(inner, label), label)
            else:
                self._add(FileNames(text))
            return
        label = short_label(inner)
        if scheme[1].lower() not in ("http", "https"):
            advice = "Give the path." if scheme[1].lower() == "file" else "Download it first."
            raise FetchError(
                f"{label}: only http and https addresses are fetched. {advice}", source=label
            )
        self._add(Source(label, partial(self._fetched, inner, label)))

    def _fetched(self, url: str, label: str, cancel: CancelToken | None) -> Opened:
        fetch = self.fetch
        if fetch is None:
            from mlx_magic.images.http.fetch import UrlFetcher

            fetch = UrlFetcher()
        data = fetch(url, cancel=cancel)
        return _decoded_file(data, label, self.normalize, cancel)

    def _add_file(self, data: bytes, label: str) -> None:
        self._count_bytes(len(data), label)
        self._add(Source(label, partial(_decoded_file, data, label, self.normalize)))

    def _add(self, source: Source | ImageInput | FileNames) -> None:
        if isinstance(source, ImageInput):
            label = source.source
        else:
            label = source.label if isinstance(source, Source) else short_label(source.text)
        self._check_count(label)
        self.found.append(source)

    def _check_count(self, label: str, more: int = 1) -> None:
        """Refuse more images than a request takes, before the next one is read or copied."""
        if len(self.found) + more > MAX_IMAGES:
            raise ImageError(
                f"At most {MAX_IMAGES} images fit in one request, {label} is one too many.",
                source=label,
            )

    def _count_bytes(self, size: int, label: str) -> None:
        self._taken += size
        if self._taken > MAX_TAKEN_BYTES:
            raise ImageTooLargeError(
                f"The images up to {label} take {amount(self._taken)} before they are decoded; "
                f"the limit is {amount(MAX_TAKEN_BYTES)}. Give fewer, or smaller ones.",
                source=label,
                size=self._taken,
                limit=MAX_TAKEN_BYTES,
            )

    def _checkpoint(self) -> None:
        if self.cancel is not None:
            self.cancel.checkpoint()


def _decoded_file(data: bytes, label: str, normalize: bool, cancel: CancelToken | None) -> Opened:
    decoded = decode_bytes(data, label, cancel, normalize=normalize)
    return Opened(decoded, Encoded(data, normalize=normalize))


def _decoded_page(
    data: bytes, label: str, frame: int, normalize: bool, cancel: CancelToken | None
) -> Opened:
    """Decode the file of a Pillow image, which a notebook shows without turning it upright."""
    decoded = decode_bytes(data, label, cancel, frame=frame, normalize=normalize)
    notes = (*decoded.notes, *turned_note(decoded.turned))
    return Opened(replace(decoded, notes=notes), Encoded(data, frame, normalize))


def _array_image(images: ArrayImages, index: int, label: str, cancel: CancelToken | None) -> Opened:
    with quiet():
        checkpoint = DecodeDeadline(label, cancel).checkpoint
        image, notes = images.image_at(index, checkpoint)
        deep = images.changed_by_normalize(checkpoint)
    decoded = decode_image(image, label, cancel, owned=True)
    # The array's own notes say what its numbers became.
    others = [note for note in decoded.notes if note != DARK_MASK]
    return Opened(Decoded(decoded.pixels, (*notes, *others), deep))


def _guarded(items: Iterable[tuple[object, Any]], label: str) -> Iterable[tuple[object, Any]]:
    """Yield the items of a container; an exception of its own code is an error of one line."""
    iterator = iter(items)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except (MlxMagicError, Cancelled):
            raise
        except Exception as error:
            raise ImageError(
                f"{label} failed to give its next image: {reason(error)}.", source=label
            ) from error
        yield item


def _figures_of_axes(value: Any) -> list[Any] | None:
    """Return the figures of a list, array or dictionary of axes, each once; else None."""
    if isinstance(value, (list, tuple)):
        return figures.figures_of_axes(value)
    if isinstance(value, Mapping):
        return figures.figures_of_axes(value.values())
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return figures.figures_of_axes(value.flat) if kind == "O" and hasattr(value, "flat") else None


def _result_images(value: Any) -> tuple[ImageInput, ...] | None:
    """Return the images of a `VisionResult`; None for other values."""
    # Recognized by its fields: this package must not import the class.
    fields = getattr(type(value), "__dataclass_fields__", ())
    images = getattr(value, "images", None) if "finish_reason" in fields else None
    if isinstance(images, tuple) and all(isinstance(image, ImageInput) for image in images):
        return images
    return None
