"""Decodes image files and converts Pillow images to upright RGB pixels, within limits.

Thread-safe: global state of Pillow and Python is not changed for other threads.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any, TypeVar

from PIL import ExifTags, Image, ImageFile

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import ImageDecodeError, ImageError, ImageTooLargeError
from mlx_magic.formatting import reason
from mlx_magic.images.color_modes import DEEP_MODES, converted
from mlx_magic.images.decoding import without_pillow
from mlx_magic.images.decoding.child_process import decode_heif, decode_in_child, decode_jpeg2000
from mlx_magic.images.decoding.file_structure import (
    MAX_MEMORY,
    Count,
    check_memory,
    check_structure,
)
from mlx_magic.images.decoding.pixel_capacity import check_capacity
from mlx_magic.images.decoding.quiet_libraries import quiet
from mlx_magic.images.decoding.stoppable_file import DECODE_SECONDS, DecodeDeadline, WatchedBytes
from mlx_magic.images.decoding.without_pillow import decode_netpbm, decode_qoi
from mlx_magic.images.formats import SNIFF_BYTES, image_format, unsupported_reason
from mlx_magic.images.limits import MAX_FILE_BYTES, MAX_PIXELS_DECODED, check_bytes, check_pixels
from mlx_magic.images.value_range import Levels, integer_levels, of_top

_T = TypeVar("_T")

# The plugin classes are used instead of Image.open, which also tries formats that start other
# programs, and warns about large images (suppressing warnings is not thread-safe).
_DECODERS = {
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "JPEG": ("JpegImagePlugin", "JpegImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "WebP": ("WebPImagePlugin", "WebPImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
    "PPM": ("PpmImagePlugin", "PpmImageFile"),
}
# For formats that Pillow decodes too slowly or uninterruptibly. Returning None means: use Pillow.
_OWN_DECODERS: dict[str, Callable[[bytes, DecodeDeadline], Image.Image | None]] = {
    "HEIF": decode_heif,
    "JPEG 2000": decode_jpeg2000,
    "PPM": decode_netpbm,
    "QOI": decode_qoi,
}
# Memory limits of the child process. For TIFF: a large image, rotated, and a strip of that size.
_MEMORY = {"TIFF": 2_000_000_000, "AVIF": MAX_MEMORY}
# Formats with decoders in Python that read byte by byte.
_BYTEWISE_FORMATS = frozenset({"BMP"})

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """Decoded pixels, and notes for the user.

    Attributes
    ----------
    pixels : PIL.Image.Image
        RGB and upright; not shared with other code.
    notes : tuple of str
        Such as ``"first of 12 frames"``.
    deep : bool
        Whether its values are wider than 8 bits, so that `normalize` matters.
    turned : int
        EXIF orientation that was applied; 1 is none.
    """

    pixels: Image.Image
    notes: tuple[str, ...] = ()
    deep: bool = False
    turned: int = 1


def decode_bytes(
    data: bytes,
    label: str,
    cancel: CancelToken | None = None,
    *,
    frame: int = 0,
    normalize: bool = True,
) -> Decoded:
    """Decode an image file.

    Parameters
    ----------
    data : bytes
        The whole file.
    label : str
        The name given by the user, for messages.
    cancel : CancelToken, optional
        Checked whenever the decoder reads. The WebP decoder reads the file at once, so that it
        is checked only before and after it.
    frame : int
        Index of the page of a TIFF.
    normalize : bool
        See `color_modes.converted`.

    Raises
    ------
    ImageDecodeError
        If it is not an image, damaged, truncated, of an unsupported format, or crafted so that
        decoding would take too long.
    ImageTooLargeError
        If it has too many bytes or pixels; raised before decoding.
    Cancelled
        If `cancel` was cancelled.
    """
    with quiet():
        return _decode_bytes(data, label, cancel, frame, normalize)


def _decode_bytes(
    data: bytes, label: str, cancel: CancelToken | None, frame: int, normalize: bool
) -> Decoded:
    check_bytes(len(data), label)
    kind = image_format(data[:SNIFF_BYTES])
    if kind is None:
        raise ImageDecodeError(f"{label} {unsupported_reason(data[:SNIFF_BYTES])}", source=label)
    watch = DecodeDeadline(label, cancel)
    watch.checkpoint()
    # Only the first page is checked for its bytes.
    check = check_structure if frame else _check
    counted = _guarded(lambda: check(kind, data, watch), watch, kind)
    own = _OWN_DECODERS.get(kind)
    image = None if own is None else _guarded(lambda: own(data, watch), watch, kind)
    if image is not None:
        return _finish(image, None, watch, kind, counted=counted, owned=True, normalize=normalize)
    decoder = _decoder(kind)

    def opened() -> ImageFile.ImageFile:
        found = decoder(WatchedBytes(data, watch, small_reads=kind in _BYTEWISE_FORMATS))
        if frame:
            found.seek(frame)
        return found

    image = _guarded(opened, watch, kind)
    check_pixels(image.size, label)
    check_memory(kind, image.size, label)
    page = image
    deep = _guarded(lambda: _deep_colors(page, opened, data, watch), watch, kind)
    if deep is not None:
        return _finish_deep(page, deep, watch, kind, counted=counted, normalize=normalize)
    from_child = _guarded(lambda: _decoded_in_child(page, data, watch), watch, kind)
    # The image must stay open, since its pixels are used. A BytesIO need not be closed.
    return _finish(image, from_child, watch, kind, counted=counted, owned=True, normalize=normalize)


def pixels_of(data: bytes) -> int:
    """Return the number of pixels that an image file declares; 0 if unknown.

    Reads only the header.
    """
    kind = image_format(data[:SNIFF_BYTES])
    if kind not in _DECODERS:
        return 0
    watch = DecodeDeadline("image", None)
    try:
        decoder = _decoder(kind)
        file = WatchedBytes(data, watch, small_reads=kind in _BYTEWISE_FORMATS)
        with quiet():
            width, height = _guarded(lambda: decoder(file), watch, kind).size
    except ImageError:
        return 0
    return max(width, 0) * max(height, 0)


def decode_image(
    image: Image.Image,
    label: str,
    cancel: CancelToken | None = None,
    *,
    owned: bool = False,
    normalize: bool = True,
) -> Decoded:
    """Copy the current frame of a Pillow image. The original is not changed.

    Pixels are those that a notebook shows: only an image as it was opened is turned upright. A
    copy of one, which may have been turned already, keeps its pixels as they are.

    Parameters
    ----------
    image : PIL.Image.Image
    label : str
        The name given by the user, for messages.
    cancel : CancelToken, optional
        Checked before and after the file of the image is decoded.
    owned : bool
        Whether no other code uses the image. RGB pixels are then not copied.
    normalize : bool
        See `color_modes.converted`.

    Raises
    ------
    ImageDecodeError
        If its file is damaged, truncated or closed.
    ImageTooLargeError
        If it has too many pixels.
    Cancelled
        If `cancel` was cancelled.
    """
    watch = DecodeDeadline(label, cancel)
    watch.checkpoint()
    kind = image.format or "image"

    def inspect() -> tuple[Count | None, Image.Image | None, Mapping[str, Any] | None]:
        data = file_of(image)
        found = image_format(data[:SNIFF_BYTES])
        if found is None:
            return None, None, None
        check_pixels(image.size, label)
        later_page = found == "TIFF" and image.tell() > 0
        counted = check_structure(found, data, watch) if later_page else _check(found, data, watch)
        from_child = _decoded_in_child(image, data, watch)
        if from_child is None and found == "TIFF" and image.mode in DEEP_MODES:
            return counted, None, _range_of_pages(image, data, watch)
        return counted, from_child, None

    with quiet():
        counted, from_child, pages = _guarded(inspect, watch, kind)
        done = _finish(
            image,
            from_child,
            watch,
            kind,
            counted=counted,
            owned=owned,
            normalize=normalize,
            pages=pages,
            # A copy may have been turned by hand, and keeps the tag.
            upright=isinstance(image, ImageFile.ImageFile),
        )
    note = turned_note(done.turned)
    left = _orientation(image)
    if not note and not isinstance(image, ImageFile.ImageFile) and left in _ORIENTATIONS:
        note = (f"not turned: EXIF orientation {left} is left from the file it was made of",)
    return Decoded(done.pixels, (*done.notes, *note), done.deep)


def unread_file(image: Image.Image, data: bytes) -> tuple[bytes, int] | None:
    """Return file and frame of an opened image whose pixels were not read yet, else None.

    `data` is the content of its file. The pixels that it gives are then those of the image.
    """
    if getattr(image, "_im", None) is not None and getattr(image, "tile", None) == []:
        return None
    kind = image_format(data[:SNIFF_BYTES])
    if kind not in _DECODERS or not isinstance(image, ImageFile.ImageFile):
        return None
    frame = image.tell()
    if frame and kind != "TIFF":
        return None
    try:
        with quiet():
            fresh = _decoder(kind)(io.BytesIO(data))
            if frame:
                fresh.seek(frame)
    # Damaged in a way that only this second opening shows: decoding reports it.
    except Exception:
        return None
    # The first image of an MPO is a plain JPEG.
    names = ("size", "mode") if image.format == "MPO" else ("format", "size", "mode", "tile")
    same = all(getattr(fresh, name) == getattr(image, name) for name in names)
    kept = fresh.info.get("transparency") == image.info.get("transparency")
    return (data, frame) if same and kept else None


def turned_note(orientation: int) -> tuple[str, ...]:
    """Return a note if an EXIF tag was applied to a Pillow image, which a notebook does not do."""
    if orientation not in _ORIENTATIONS:
        return ()
    return (f"turned upright (EXIF orientation {orientation})",)


def _check(kind: str, data: bytes, watch: DecodeDeadline) -> Count | None:
    counted = check_structure(kind, data, watch)
    if not ImageFile.LOAD_TRUNCATED_IMAGES:  # set by a user who wants incomplete images
        check_capacity(kind, data)
    return counted


def _decoded_in_child(image: Image.Image, data: bytes, watch: DecodeDeadline) -> Image.Image | None:
    """Return a page decoded by libtiff or libavif in a child process; None for other images."""
    kind = image.format or ""
    if kind != "AVIF" and not (kind == "TIFF" and getattr(image, "tile", None)):
        return None
    # The child process also finds the range of all pages.
    pages = image.mode in DEEP_MODES and _has_pages(image)
    if kind == "TIFF" and not (getattr(image, "use_load_libtiff", False) or pages):
        return None
    return decode_in_child(
        kind, data, watch, seconds=int(DECODE_SECONDS), memory=_MEMORY[kind], frame=image.tell()
    )


def _range_of_pages(
    image: Image.Image, data: bytes, watch: DecodeDeadline
) -> Mapping[str, Any] | None:
    """Return the range of all pages of a file of which one was loaded already."""
    if not _has_pages(image):
        return None
    page = decode_in_child(
        "TIFF", data, watch, seconds=int(DECODE_SECONDS), memory=_MEMORY["TIFF"], frame=image.tell()
    )
    return None if page is None else page.info.get("pages")


def _has_pages(image: Any) -> bool:
    """Return whether a TIFF has more than one page; reads only the offset of the second."""
    return bool(getattr(image, "is_animated", False))


def _deep_colors(
    image: ImageFile.ImageFile,
    opened: Callable[[], ImageFile.ImageFile],
    data: bytes,
    watch: DecodeDeadline,
) -> without_pillow.DeepColors | None:
    """Return an image with colors of 16 bits; None for other images."""
    mode = without_pillow.raw_mode(image) if image.format in ("PNG", "TIFF") else ""
    if not mode:
        return None
    compressed = bool(getattr(image, "use_load_libtiff", False))
    pages = image.format == "TIFF" and _has_pages(image)
    read: list[Image.Image] = []
    planes = without_pillow.planes(mode)
    for plane in planes:
        watch.checkpoint()
        part = None
        # The child process also finds the range of all pages.
        if compressed or (pages and not read):
            part = decode_in_child(
                "TIFF",
                data,
                watch,
                seconds=int(DECODE_SECONDS),
                memory=_MEMORY["TIFF"],
                frame=image.tell(),
                raw_mode=plane,
                planes=(*planes, mode) if pages and not read else (),
            )
            if part is None and compressed:
                return None
        if part is None:
            file = opened()
            without_pillow.set_raw_mode(file, plane)
            file.load()
            part = file
        read.append(part)
    return without_pillow.DeepColors(mode, read, read[0].info.get("transparency"))


def _finish_deep(
    image: ImageFile.ImageFile,
    deep: without_pillow.DeepColors,
    watch: DecodeDeadline,
    kind: str,
    *,
    counted: Count | None,
    normalize: bool,
) -> Decoded:
    def scaled() -> tuple[Image.Image, tuple[str, ...]]:
        step = watch.checkpoint
        whole = Levels(of_top(65_535))
        if not normalize:
            return deep.scaled(whole.scale, whole.scale, step), ()
        colors = integer_levels(deep.range(alpha=False, checkpoint=step))
        alpha = integer_levels(deep.range(alpha=True, checkpoint=step))
        colors, alpha = colors or whole, alpha or whole
        notes = (*filter(None, [colors.note]), *deep.page_notes)
        return deep.scaled(colors.scale, alpha.scale, step), notes

    pixels, notes = _guarded(scaled, watch, kind)
    turn = _orientation(image)
    if turn in _ORIENTATIONS:
        pixels.getexif()[ExifTags.Base.Orientation] = turn
    done = _finish(image, pixels, watch, kind, counted=counted, owned=True, normalize=normalize)
    return replace(done, notes=(*done.notes, *notes), deep=True)


def file_of(image: Image.Image) -> bytes:
    """Return the content of the file of a lazily loaded Pillow image; keep its position."""
    if not isinstance(image, ImageFile.ImageFile):
        return b""
    file: Any = getattr(image, "_fp", None) or image.fp
    try:
        if not hasattr(file, "read") or getattr(file, "closed", False):  # already loaded
            return b""
    except ValueError:  # closed by Pillow after it was loaded
        return b""
    at = file.tell()
    try:
        if file.seek(0, io.SEEK_END) > MAX_FILE_BYTES:
            return b""
        file.seek(0)
        data: bytes = file.read()
    finally:
        file.seek(at)
    return data


def _decoder(kind: str) -> Callable[[IO[bytes]], ImageFile.ImageFile]:
    module, name = _DECODERS[kind]
    decoder: Callable[[IO[bytes]], ImageFile.ImageFile] = getattr(
        importlib.import_module(f"PIL.{module}"), name
    )
    return decoder


def _finish(
    image: Image.Image,
    from_child: Image.Image | None,
    watch: DecodeDeadline,
    kind: str,
    *,
    counted: Count | None,
    owned: bool,
    normalize: bool,
    pages: Mapping[str, Any] | None = None,
    upright: bool = True,
) -> Decoded:
    """Convert the image from the child process, or else `image` itself."""
    width, height = image.size
    label = watch.label
    if width < 1 or height < 1:
        raise ImageDecodeError(f"{label} is {width}x{height}: it has no pixels.", source=label)
    check_pixels(image.size, label)

    def convert() -> Decoded:
        loaded = image if from_child is None else from_child
        loaded.load()  # mode, size and info are final only now
        watch.checkpoint()
        done = converted(
            loaded,
            owned=owned or from_child is not None,
            checkpoint=watch.checkpoint,
            normalize=normalize,
            pages=pages if from_child is None else from_child.info.get("pages"),
        )
        pixels = done.pixels
        turned = _orientation(loaded) if upright else 1
        transpose_method = _ORIENTATIONS.get(turned)
        frames = _frames_note(image, counted)
        watch.checkpoint()
        pixels = pixels.transpose(transpose_method) if transpose_method is not None else pixels
        # Metadata (profiles, comments, transparency) describes the original.
        pixels.info.clear()
        return Decoded(pixels, (*frames, *done.notes), done.deep, turned)

    decoded = _guarded(convert, watch, kind)
    check_pixels(decoded.pixels.size, label)
    return decoded


def _guarded(work: Callable[[], _T], watch: DecodeDeadline, kind: str) -> _T:
    """Run Pillow on untrusted content, and translate its exceptions."""
    label = watch.label
    try:
        result = work()
    except Image.DecompressionBombError as error:
        # Raised by Pillow for a frame or canvas inside the file.
        pixels = next(map(int, re.findall(r"\d+", str(error))), MAX_PIXELS_DECODED + 1)
        raise ImageTooLargeError(
            f"{label} unpacks to {pixels / 1e6:.0f} megapixels; the limit is "
            f"{MAX_PIXELS_DECODED // 1_000_000}.",
            source=label,
            size=pixels,
            limit=MAX_PIXELS_DECODED,
        ) from error
    except (ImageError, Cancelled):
        raise
    # Damaged files raise many exceptions: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        watch.reraise()
        raise ImageDecodeError(
            f"{label} cannot be decoded as {kind}: it is damaged or cut short ({reason(error)}).",
            source=label,
        ) from error
    watch.reraise()
    return result


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Damaged metadata is no reason to refuse an image.
        return 1
    return value if isinstance(value, int) else 1


def _frames_note(image: Image.Image, counted: Count | None) -> tuple[str, ...]:
    if isinstance(image, ImageFile.ImageFile) and image.format == "MPO":
        return ()  # further images of an MPO are depth maps or previews, not frames
    if (images := image.info.get("images", 1)) > 1:  # of a HEIC
        return (f"the main one of {images} images",)
    what = "page" if image.format == "TIFF" else "frame"
    if counted is None:
        try:
            if not getattr(image, "is_animated", False):
                return ()
        except ValueError:  # a GIF that was closed after it was loaded cannot count its frames
            return ()
        # For these two formats, n_frames would walk through the whole file.
        if image.format in ("TIFF", "GIF"):
            return (
                f"first of many {what}s" if image.tell() == 0 else f"{what} {image.tell() + 1}",
            )
        counted = Count(int(getattr(image, "n_frames", 1)))
    if counted.count < 2 and not counted.more:
        return ()
    at = image.tell()
    if at == 0:
        return (f"first of {counted} {what}s",)
    return (f"{what} {at + 1} of {counted}",)
