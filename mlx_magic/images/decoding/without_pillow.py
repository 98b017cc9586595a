"""Decodes what Pillow decodes pixel by pixel in Python (QOI, Netpbm), or in part (16-bit colors).

Of Netpbm (PBM, PGM, PPM) these are plain files (numbers as text) and binary files whose maximum
value is not 255; they are decoded with NumPy. The pixels are those of Pillow; 24 MB of text take
half a second instead of 15.
Of colors of 16 bits in PNG and TIFF files Pillow reads only the upper 8: an image of 12 bits,
stored in 16, would be black.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageFile

from mlx_magic.images.color_modes import slices, unread_pages
from mlx_magic.images.decoding.pixel_capacity import truncated
from mlx_magic.images.limits import check_pixels
from mlx_magic.images.value_range import ValueRange

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlx_magic.images.decoding.stoppable_file import DecodeDeadline


_HEADER = 14
# Maximum pixels that one byte encodes.
_RUN = 62
_CHECK_INTERVAL = 1 << 16
_TRUNCATED = "image file is truncated"


def decode_qoi(data: bytes, watch: DecodeDeadline) -> Image.Image:
    """Return an RGB or RGBA image.

    Raises
    ------
    ImageTooLargeError
        If it has too many pixels.
    ValueError, struct.error
        If it is damaged or truncated.
    """
    width, height, bands = struct.unpack_from(">IIB", data, 4)
    check_pixels((width, height), watch.label)
    if not width * height:
        raise ValueError("it has no pixels")
    if width * height > _RUN * (len(data) - _HEADER):
        raise ValueError(_TRUNCATED)
    bands = 3 if bands == 3 else 4
    pixels = _pixels(data, width * height * bands, bands, watch)
    return Image.frombuffer("RGB" if bands == 3 else "RGBA", (width, height), pixels)


def _pixels(data: bytes, wanted: int, bands: int, watch: DecodeDeadline) -> bytearray:
    out = bytearray()
    seen = [b"\0\0\0\0"[:bands]] * 64
    alphas = [0] * 64
    red = green = blue = 0
    alpha, pixel = 255, b"\0\0\0\xff"[:bands]
    at, end, check_at = _HEADER, len(data), 0
    opaque = bands == 3
    try:
        while len(out) < wanted:
            if at >= check_at:
                watch.checkpoint()
                check_at = at + _CHECK_INTERVAL
            op = data[at]
            at += 1
            if op >= 0xC0 and op < 0xFE:  # run
                out += pixel * (op - 0xBF)
                continue
            if op < 0x40:  # index
                pixel, alpha = seen[op], alphas[op]
                red, green, blue = pixel[0], pixel[1], pixel[2]
            else:
                if op < 0x80:  # small difference
                    red = (red + (op >> 4 & 3) - 2) & 255
                    green = (green + (op >> 2 & 3) - 2) & 255
                    blue = (blue + (op & 3) - 2) & 255
                elif op < 0xC0:  # larger difference, relative to green
                    more, step = data[at], op - 0xA0
                    at += 1
                    red = (red + step + (more >> 4) - 8) & 255
                    green = (green + step) & 255
                    blue = (blue + step + (more & 15) - 8) & 255
                elif op == 0xFE:
                    red, green, blue = data[at : at + 3]
                    at += 3
                else:
                    red, green, blue, alpha = data[at : at + 4]
                    at += 4
                pixel = bytes((red, green, blue)) if opaque else bytes((red, green, blue, alpha))
            key = (red * 3 + green * 5 + blue * 7 + alpha * 11) & 63
            seen[key], alphas[key] = pixel, alpha
            out += pixel
    except IndexError:
        raise ValueError(_TRUNCATED) from None
    if at > end:
        raise ValueError(_TRUNCATED)
    del out[wanted:]
    return out


# Magic, then two or three numbers, each after spaces and comments; one space ends the header.
_BETWEEN = rb"(?:\s|#[^\r\n]*[\r\n])+"
_NETPBM_HEADER = re.compile(
    rb"P(?:[14]" + (_BETWEEN + rb"(\d{1,10})") * 2 + rb"|[2356]" + (_BETWEEN + rb"(\d{1,10})") * 3
    + rb")\s"
)  # fmt: skip
_HEADER_BYTES = 65_536
_COMMENT = re.compile(rb"#[^\r\n]*(?:[\r\n]|$)")
_PIECE = 1 << 20
_MOST_COMMENTS = 100_000


def decode_netpbm(data: bytes, watch: DecodeDeadline) -> Image.Image | None:
    """Return the image (L, RGB or I), or None if Pillow should decode the file.

    Raises
    ------
    ImageTooLargeError
        If it has too many pixels.
    ValueError
        If it is damaged or truncated.
    """
    header = _NETPBM_HEADER.match(data[:_HEADER_BYTES])
    if header is None:
        raise ValueError("its header is damaged or too long")
    kind = data[1:2]
    width, height, top = (int(number) for number in [*filter(None, header.groups()), b"1"][:3])
    plain = kind in b"123"
    bands = 3 if kind in b"36" else 1
    if not 0 < top < 65_536 or not width * height:
        raise ValueError("the numbers in its header are not valid")
    check_pixels((width, height), watch.label)
    have, need = len(data) - header.end(), _min_bytes(kind, width * bands, height, top)
    if not (plain or _is_slow_in_pillow(kind, top)):
        if have < need and not ImageFile.LOAD_TRUNCATED_IMAGES:
            truncated(width, height, have, need)
        return None
    if have < need:
        truncated(width, height, have, need)
    deep = bands == 1 and top > 255
    values = _Values(width * height * bands, top, watch, deep=deep)
    if kind == b"1":
        values.add_bits(data, header.end())
    elif plain:
        values.add_text(data, header.end())
    else:
        values.add_binary(data, header.end())
    pixels = values.finished()
    return Image.fromarray(pixels.reshape((height, width, 3) if bands == 3 else (height, width)))


def _min_bytes(kind: bytes, across: int, rows: int, top: int) -> int:
    """Return the minimum size: a bit, one or two bytes, or a digit and a space for each value."""
    if kind == b"4":
        return rows * -(-across // 8)
    if kind == b"1":
        return rows * across
    return 2 * rows * across - 1 if kind in b"23" else rows * across * (1 if top < 256 else 2)


def _is_slow_in_pillow(kind: bytes, top: int) -> bool:
    if kind == b"4":
        return False
    return top != 255 and not (kind == b"5" and top == 65_535)


class _Values:
    """Scales values to pixels and collects them."""

    def __init__(self, count: int, top: int, watch: DecodeDeadline, *, deep: bool) -> None:
        import numpy as np

        highest = 65_535 if deep else 255
        steps = np.arange(top + 1) / top * highest
        self._scaled = np.rint(steps).astype(np.int32 if deep else np.uint8)
        self._out = np.empty(count, self._scaled.dtype)
        self._at = 0
        self._top = top
        self._watch = watch

    def finished(self) -> NDArray[np.uint8] | NDArray[np.int32]:
        """Return the pixels."""
        if self._at < len(self._out):
            raise ValueError("image file is truncated")
        return self._out

    def add_text(self, data: bytes, at: int) -> None:
        """Add numbers in text form."""
        import numpy as np

        for piece in _pieces(data, at):
            if piece.translate(None, b"0123456789 \t\r\n\v\f"):
                raise ValueError("a value is no number")
            if piece.isspace():  # np.fromstring would return a 0
                continue
            # Any whitespace is a separator. Other characters, which would end it, were refused.
            values = np.fromstring(piece, dtype=np.int64, sep=" ")
            if len(values) and int(values.max()) > self._top:
                raise ValueError(f"a value is larger than {self._top}")
            if self._add(values):
                return

    def add_bits(self, data: bytes, at: int) -> None:
        """Add the digits of a plain bitmap, in which 1 is black."""
        import numpy as np

        for piece in _pieces(data, at):
            digits = np.frombuffer(piece.translate(None, b" \t\r\n\v\f"), np.uint8)
            if ((digits != 48) & (digits != 49)).any():
                raise ValueError("a value is neither 0 nor 1")
            if self._add(49 - digits):
                return

    def add_binary(self, data: bytes, at: int) -> None:
        """Add values of one byte, or of two bytes if the maximum is over 255."""
        import numpy as np

        kind = np.dtype(np.uint8 if self._top < 256 else ">u2")
        end = len(data) - (len(data) - at) % kind.itemsize
        for start in range(at, end, _PIECE):
            part = np.frombuffer(data[start : min(start + _PIECE, end)], kind)
            if self._add(np.minimum(part, self._top)):
                return

    def _add(self, values: NDArray[np.integer]) -> bool:
        """Add values; return whether all pixels are complete."""
        self._watch.checkpoint()
        space = len(self._out) - self._at
        part = self._scaled[values[:space]]
        self._out[self._at : self._at + len(part)] = part
        self._at += len(part)
        return self._at == len(self._out)


def _pieces(data: bytes, at: int) -> Iterator[bytes]:
    """Yield pieces of text without comments, split between numbers."""
    if data.count(b"#", at) > _MOST_COMMENTS:
        raise ValueError("it is mostly comments")
    rest = b""
    while at < len(data):
        end = at + _PIECE
        piece = data[at:end]
        at = end
        # A comment that continues after the piece is skipped.
        hash_at = piece.rfind(b"#")
        if hash_at >= 0 and not re.search(rb"[\r\n]", piece[hash_at:]):
            found = re.compile(rb"[\r\n]").search(data, end)
            at = found.end() if found else len(data)
            piece = piece[:hash_at]
        text = rest + _COMMENT.sub(b"", piece)
        cut = max(map(text.rfind, (b" ", b"\n", b"\t", b"\r", b"\v", b"\f"))) + 1
        if len(text) - cut > _PIECE:
            cut = len(text)
        rest = text[cut:]
        yield text[:cut]
    yield rest


_ENDINGS = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B"}
# Pillow's raw modes whose bytes are read in another way than Pillow would: two channels of 16 bits
# are four of 8, and premultiplied colors are divided by alpha after they were scaled.
_AS_BYTES = "LA;16B"
_PREMULTIPLIED = "RGBa"


def raw_mode(image: Any) -> str:
    """Return Pillow's raw mode of an opened image whose colors have 16 bits; ``""`` for others."""
    modes = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile}
    if len(modes) != 1:
        return ""
    mode = modes.pop()
    if not isinstance(mode, str) or mode.startswith("I;"):
        return ""
    return mode if mode.endswith(tuple(_ENDINGS)) else ""


def planes(mode: str) -> tuple[str, ...]:
    """Return the raw modes that read the upper and the lower bytes; one reads both of LA."""
    if mode == _AS_BYTES:
        return ("RGBA",)
    bands, ending = mode[:-4], mode[-4:]
    bands = "RGBA" if bands == _PREMULTIPLIED else bands
    # Big-endian values begin with the upper byte, and "16B" reads the first.
    upper, lower = (";16B", ";16L") if ending == ";16B" else (";16L", ";16B")
    if ending == ";16N":
        upper, lower = ";16N", ";16B"
    return bands + upper, bands + lower


def set_raw_mode(image: Any, mode: str) -> None:
    """Let an opened image read its file in another raw mode."""
    image.tile = [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
        for tile in image.tile
    ]


class DeepColors:
    """An image of 16 bits a channel.

    Parameters
    ----------
    mode : str
        From `raw_mode`.
    read : sequence of PIL.Image.Image
        The image in each raw mode of `planes`, loaded.
    transparent : tuple of int or None
        The color that is transparent.

    Attributes
    ----------
    page_notes : tuple of str
        A note if not all pages of the file were read for their range.
    """

    def __init__(self, mode: str, read: list[Image.Image], transparent: Any = None) -> None:
        self._read = read
        self._transparent = transparent if isinstance(transparent, tuple) else None
        self.size = read[0].size
        bands = mode[:-4]
        self.mode = {"RGBX": "RGB", _PREMULTIPLIED: _PREMULTIPLIED}.get(bands, bands)
        self._colors = 1 if self.mode == "LA" else 4 if self.mode == "CMYK" else 3
        pages = read[0].info.get("pages") or {}
        self._highest: list[int] = pages.get("high", [])
        self.page_notes = unread_pages(pages) if pages else ()

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.mode in ("LA", "RGBA", _PREMULTIPLIED)

    def range(self, *, alpha: bool, checkpoint: Callable[[], None]) -> ValueRange:
        """Return the range of the colors, or of alpha, of this page and all others."""
        values = ValueRange.of(self._parts(alpha=alpha, checkpoint=checkpoint))
        others = self._highest[self._colors :] if alpha else self._highest[: self._colors]
        return replace(values, high=max([values.high, *others]))

    def _parts(self, *, alpha: bool, checkpoint: Callable[[], None]) -> Any:
        for box in slices(self.size):
            checkpoint()
            values = self._values(box)
            yield values[..., self._colors :] if alpha else values[..., : self._colors]

    def scaled(
        self,
        colors: Callable[[NDArray[Any]], NDArray[np.uint8]],
        alpha: Callable[[NDArray[Any]], NDArray[np.uint8]],
        checkpoint: Callable[[], None],
    ) -> Image.Image:
        """Return the image with 8 bits a channel."""
        import numpy as np

        mode = "RGBA" if self._transparent else self.mode
        made = Image.new(mode, self.size)
        for box in slices(self.size):
            checkpoint()
            values = self._values(box)
            layers = [colors(values[..., : self._colors])]
            if self.has_alpha:
                layers.append(alpha(values[..., self._colors :]))
            if self._transparent:
                opaque = (values != np.array(self._transparent, np.uint16)).any(-1, keepdims=True)
                layers.append(opaque.astype(np.uint8) * np.uint8(255))
            pixels = np.ascontiguousarray(np.concatenate(layers, axis=-1))
            size = box[2] - box[0], box[3] - box[1]
            made.paste(Image.frombytes(mode, size, pixels.tobytes()), box)
        return made.convert("RGBA") if mode == _PREMULTIPLIED else made

    def _values(self, box: tuple[int, int, int, int]) -> NDArray[np.uint16]:
        import numpy as np

        found = [np.asarray(image.crop(box)).astype(np.uint16) for image in self._read]
        if len(found) == 1:
            upper, lower = found[0][..., 0::2], found[0][..., 1::2]
        else:
            upper, lower = found
        values: NDArray[np.uint16] = upper * np.uint16(256) + lower
        return values
