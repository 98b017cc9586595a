"""Decodes image files and converts Pillow images to upright RGB pixels, within limits.

Thread-safe: global state of Pillow and Python is not changed for other threads.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from PIL import ExifTags, Image, ImageFile

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import ImageDecodeError, ImageError, ImageTooLargeError
from mlx_magic.formatting import reason
from mlx_magic.images.color_modes import to_rgb
from mlx_magic.images.decoding.child_process import decode_in_child
from mlx_magic.images.decoding.file_structure import (
    MAX_MEMORY,
    Count,
    check_memory,
    check_structure,
)
from mlx_magic.images.decoding.jpeg2000 import decode_jpeg2000
from mlx_magic.images.decoding.netpbm import decode_netpbm
from mlx_magic.images.decoding.pixel_capacity import check_capacity
from mlx_magic.images.decoding.qoi import decode_qoi
from mlx_magic.images.decoding.quiet_libraries import quiet
from mlx_magic.images.decoding.stoppable_file import DECODE_SECONDS, DecodeDeadline, WatchedBytes
from mlx_magic.images.formats import SNIFF_BYTES, image_format, unsupported_reason
from mlx_magic.images.limits import MAX_FILE_BYTES, MAX_PIXELS_DECODED, check_bytes, check_pixels

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
    """

    pixels: Image.Image
    notes: tuple[str, ...] = ()


def decode_bytes(data: bytes, label: str, cancel: CancelToken | None = None) -> Decoded:
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
        return _decode_bytes(data, label, cancel)


def _decode_bytes(data: bytes, label: str, cancel: CancelToken | None) -> Decoded:
    check_bytes(len(data), label)
    kind = image_format(data[:SNIFF_BYTES])
    if kind is None:
        raise ImageDecodeError(f"{label} {unsupported_reason(data[:SNIFF_BYTES])}", source=label)
    watch = DecodeDeadline(label, cancel)
    watch.checkpoint()
    counted = _guarded(lambda: _check(kind, data, watch), watch, kind)
    own = _OWN_DECODERS.get(kind)
    image = None if own is None else _guarded(lambda: own(data, watch), watch, kind)
    if image is None:
        decoder = _decoder(kind, label)
        file = WatchedBytes(data, watch, small_reads=kind in _BYTEWISE_FORMATS)
        image = _guarded(lambda: decoder(file), watch, kind)
        check_pixels(image.size, label)
        check_memory(kind, image.size, label)
    opened = image
    from_child = _guarded(lambda: _decoded_in_child(opened, data, watch), watch, kind)
    # The image must stay open, since its pixels are used. A BytesIO need not be closed.
    return _finish(image, from_child, watch, kind, counted=counted, owned=True)


def pixels_of(data: bytes) -> int:
    """Return the number of pixels that an image file declares; 0 if unknown.

    Reads only the header.
    """
    kind = image_format(data[:SNIFF_BYTES])
    if kind not in _DECODERS:
        return 0
    watch = DecodeDeadline("image", None)
    try:
        decoder = _decoder(kind, "image")
        file = WatchedBytes(data, watch, small_reads=kind in _BYTEWISE_FORMATS)
        with quiet():
            width, height = _guarded(lambda: decoder(file), watch, kind).size
    except ImageError:
        return 0
    return max(width, 0) * max(height, 0)


def decode_image(
    image: Image.Image, label: str, cancel: CancelToken | None = None, *, owned: bool = False
) -> Decoded:
    """Copy the current frame of a Pillow image. The original is not changed.

    Parameters
    ----------
    image : PIL.Image.Image
    label : str
        The name given by the user, for messages.
    cancel : CancelToken, optional
        Checked before and after the file of the image is decoded.
    owned : bool
        Whether no other code uses the image. RGB pixels are then not copied.

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

    def inspect() -> tuple[Count | None, Image.Image | None]:
        data = _file_of(image)
        found = image_format(data[:SNIFF_BYTES])
        if found is None:
            return None, None
        check_pixels(image.size, label)
        later_page = found == "TIFF" and image.tell() > 0
        counted = check_structure(found, data, watch) if later_page else _check(found, data, watch)
        return counted, _decoded_in_child(image, data, watch)

    with quiet():
        counted, from_child = _guarded(inspect, watch, kind)
        return _finish(image, from_child, watch, kind, counted=counted, owned=owned)


def _check(kind: str, data: bytes, watch: DecodeDeadline) -> Count | None:
    counted = check_structure(kind, data, watch)
    if not ImageFile.LOAD_TRUNCATED_IMAGES:  # set by a user who wants incomplete images
        check_capacity(kind, data)
    return counted


def _decoded_in_child(image: Image.Image, data: bytes, watch: DecodeDeadline) -> Image.Image | None:
    """Return a page decoded by libtiff or libavif in a child process; None for other images."""
    kind = image.format or ""
    by_libtiff = getattr(image, "use_load_libtiff", False) and getattr(image, "tile", None)
    if kind != "AVIF" and not (kind == "TIFF" and by_libtiff):
        return None
    return decode_in_child(
        kind, data, watch, seconds=int(DECODE_SECONDS), memory=_MEMORY[kind], frame=image.tell()
    )


def _file_of(image: Image.Image) -> bytes:
    """Return the content of the file of a lazily loaded Pillow image; keep its position."""
    if not isinstance(image, ImageFile.ImageFile):
        return b""
    file: Any = getattr(image, "_fp", None) or image.fp
    try:
        if not hasattr(file, "read") or getattr(file, "closed", False) is True:
            return b""  # already loaded
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


def _decoder(kind: str, label: str) -> Callable[[IO[bytes]], ImageFile.ImageFile]:
    if kind == "HEIF":
        registered = Image.OPEN.get("HEIF")
        if registered is None:
            raise ImageDecodeError(
                f"{label} is a HEIC/HEIF image, which needs one more package: "
                "pip install pillow-heif, then pillow_heif.register_heif_opener().",
                source=label,
            )
        return lambda file: registered[0](file, "")
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
        pixels, done = to_rgb(
            loaded, owned=owned or from_child is not None, checkpoint=watch.checkpoint
        )
        transpose_method = _ORIENTATIONS.get(_orientation(loaded))
        frames = _frames_note(image, counted)
        watch.checkpoint()
        pixels = pixels.transpose(transpose_method) if transpose_method is not None else pixels
        # Metadata (profiles, comments, transparency) describes the original.
        pixels.info.clear()
        return Decoded(pixels, (*frames, *done))

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
