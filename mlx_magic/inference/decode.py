"""Encoded bytes or any Pillow image -> upright RGB pixels, within limits and without guessing.

Nothing here touches Pillow's or Python's global state, so it may run in any thread.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TypeVar

from PIL import ExifTags, Image, ImageFile

from mlx_magic.errors import ImageDecodeError, ImageError, ImageTooLargeError
from mlx_magic.inference.image_limits import (
    MAX_PIXELS_DECODED,
    check_bytes,
    check_pixels,
    reason,
)
from mlx_magic.inference.image_modes import to_rgb
from mlx_magic.inference.sniff import SNIFF_BYTES, picture_format, why_no_picture

_T = TypeVar("_T")

# The plugin classes themselves, not Image.open: that one tries formats that start other programs,
# and measures size with a warning, while switching warnings off is not safe between threads.
_DECODERS = {
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "JPEG": ("JpegImagePlugin", "JpegImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "WebP": ("WebPImagePlugin", "WebPImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
    "JPEG 2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "PPM": ("PpmImagePlugin", "PpmImageFile"),
    "QOI": ("QoiImagePlugin", "QoiImageFile"),
}
# Frames are counted by walking through the file; not through one that was built to be long.
_COUNT_FRAMES_BYTES = 50_000_000

_TURNS = {
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
    """Pixels, and what was done to get them.

    Attributes
    ----------
    pixels : PIL.Image.Image
        RGB, upright, nobody else's.
    notes : tuple of str
        What the person should know (``"first of 12 frames"``).
    """

    pixels: Image.Image
    notes: tuple[str, ...] = ()


def decode_bytes(data: bytes, label: str) -> Decoded:
    """Decode a picture file.

    Parameters
    ----------
    data : bytes
        The whole file.
    label : str
        How the person named it, for messages.

    Raises
    ------
    ImageDecodeError
        If it is no picture, damaged, cut short, or of a format that is not read.
    ImageTooLargeError
        If it has more bytes or pixels than allowed; found out before decoding.
    """
    check_bytes(len(data), label)
    kind = picture_format(data[:SNIFF_BYTES])
    if kind is None:
        raise ImageDecodeError(f"{label} {why_no_picture(data[:SNIFF_BYTES])}", source=label)
    decoder = _decoder(kind, label)
    image = _guarded(lambda: decoder(io.BytesIO(data)), label, kind)
    # BytesIO needs no closing, and the image may not be closed: its pixels are still wanted.
    count = len(data) <= _COUNT_FRAMES_BYTES
    return _finish(image, label, kind, count_frames=count)


def pixels_of(data: bytes) -> int:
    """Return how many pixels a picture file says that it has; 0 where that is not clear.

    Reads the file's head and decodes nothing.
    """
    kind = picture_format(data[:SNIFF_BYTES])
    if kind is None:
        return 0
    try:
        decoder = _decoder(kind, "picture")
        width, height = _guarded(lambda: decoder(io.BytesIO(data)), "picture", kind).size
    except ImageError:
        return 0
    return max(width, 0) * max(height, 0)


def decode_image(image: Image.Image, label: str) -> Decoded:
    """Copy a Pillow image, at the frame it stands at. The original keeps its pixels.

    Raises
    ------
    ImageDecodeError
        If its file is damaged, cut short or closed already.
    ImageTooLargeError
        If it has more pixels than allowed.
    """
    return _finish(image, label, image.format or "picture", count_frames=True)


def _decoder(kind: str, label: str) -> Callable[[IO[bytes]], ImageFile.ImageFile]:
    if kind == "HEIF":
        registered = Image.OPEN.get("HEIF")
        if registered is None:
            raise ImageDecodeError(
                f"{label} is a HEIC/HEIF picture, which needs one more package: "
                "pip install pillow-heif, then pillow_heif.register_heif_opener().",
                source=label,
            )
        return lambda file: registered[0](file, "")
    module, name = _DECODERS[kind]
    decoder: Callable[[IO[bytes]], ImageFile.ImageFile] = getattr(
        importlib.import_module(f"PIL.{module}"), name
    )
    return decoder


def _finish(image: Image.Image, label: str, kind: str, *, count_frames: bool) -> Decoded:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageDecodeError(f"{label} is {width}x{height}: it has no pixels.", source=label)
    check_pixels(image.size, label)

    def convert() -> Decoded:
        image.load()  # mode, size and info are final only now
        pixels, done = to_rgb(image)
        turn = _TURNS.get(_orientation(image))
        frames = _frames_note(image, count=count_frames)
        pixels = pixels.transpose(turn) if turn is not None else pixels
        # What came along (profiles, comments, transparency) described the original.
        pixels.info.clear()
        return Decoded(pixels, (*frames, *done))

    decoded = _guarded(convert, label, kind)
    check_pixels(decoded.pixels.size, label)
    return decoded


def _guarded(work: Callable[[], _T], label: str, kind: str) -> _T:
    """Run Pillow on untrusted content and translate whatever it raises."""
    try:
        return work()
    except Image.DecompressionBombError as error:
        # Found in the middle of a file, where only Pillow looks: a frame, a canvas.
        pixels = next(map(int, re.findall(r"\d+", str(error))), MAX_PIXELS_DECODED + 1)
        raise ImageTooLargeError(
            f"{label} unpacks to {pixels / 1e6:.0f} megapixels; the limit is "
            f"{MAX_PIXELS_DECODED // 1_000_000}.",
            source=label,
            size=pixels,
            limit=MAX_PIXELS_DECODED,
        ) from error
    # Damaged files raise nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise ImageDecodeError(
            f"{label} cannot be decoded as {kind}: it is damaged or cut short ({reason(error)}).",
            source=label,
        ) from error


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # A broken camera note is no reason to refuse a good picture.
        return 1
    return value if isinstance(value, int) else 1


def _frames_note(image: Image.Image, *, count: bool) -> tuple[str, ...]:
    if isinstance(image, ImageFile.ImageFile) and image.format == "MPO":
        return ()  # further pictures in a photo are depth maps and the like, not frames
    if not getattr(image, "is_animated", False):
        return ()
    what = "page" if image.format == "TIFF" else "frame"
    if not count:
        return (f"first of many {what}s",)
    at, frames = image.tell(), int(getattr(image, "n_frames", 1))
    if at == 0:
        return (f"first of {frames} {what}s",)
    return (f"{what} {at + 1} of {frames}",)
