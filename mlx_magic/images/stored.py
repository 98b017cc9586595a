"""Pixels of an image, kept as the file they came from and decoded on demand.

A photo of 12 megapixels takes 48 MB as pixels and 3 MB as a file. Results are kept by the hundred.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

RECENT_BYTES = 64_000_000
"""Maximum bytes of pixels that stay decoded after their last use, for the next question."""

_BYTES_A_PIXEL = 4  # of Pillow's RGB images
_RAW_BYTES_A_PIXEL = 3
_LEVEL = 1  # of zlib: higher ones take far longer and save little after the filter


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image file, and what makes the pixels of it.

    Attributes
    ----------
    data : bytes
        The whole file.
    frame : int
        Index of the page of a TIFF.
    normalize : bool
        See `value_range`.
    """

    data: bytes
    frame: int = 0
    normalize: bool = True

    def decode(self, size: tuple[int, int]) -> Image.Image:
        """Return the pixels, scaled down to `size`."""
        from mlx_magic.images.decoding.decode import decode_bytes

        pixels = decode_bytes(self.data, "image", frame=self.frame, normalize=self.normalize).pixels
        return pixels if pixels.size == size else shrink(pixels, size)


class StoredPixels:
    """RGB pixels that are decoded when they are asked for; thread-safe.

    Parameters
    ----------
    pixels : PIL.Image.Image
        RGB and upright.
    encoded : Encoded, optional
        The file that the pixels come from. Without one, or with one that is larger than the
        pixels, they are compressed losslessly.

    Attributes
    ----------
    size : tuple of int
        Width and height.
    """

    __slots__ = ("__weakref__", "_encoded", "_from_file", "_held", "_lock", "_seen", "size")

    def __init__(self, pixels: Image.Image, encoded: Encoded | None = None) -> None:
        self.size = pixels.size
        raw = _RAW_BYTES_A_PIXEL * self.size[0] * self.size[1]
        self._encoded = encoded if encoded is not None and len(encoded.data) <= raw else None
        self._from_file = self._encoded is not None
        self._held: Image.Image | None = pixels
        self._seen: Callable[[], Image.Image | None] = weakref.ref(pixels)
        self._lock = threading.Lock()

    @property
    def pixels(self) -> Image.Image:
        """The pixels; the same object as long as anything uses it."""
        with self._lock:
            pixels = self._held or self._seen()
            if pixels is None:
                assert self._encoded is not None
                pixels = self._encoded.decode(self.size)
                self._seen = weakref.ref(pixels)
        if self._held is None:
            _recent.add(pixels)
        return pixels

    @property
    def encoded(self) -> Encoded:
        """The file; made now if there is none."""
        if self._encoded is None:
            with self._lock:
                if self._encoded is None:
                    assert self._held is not None
                    self._encoded = Encoded(to_png(self._held))
        return self._encoded

    @property
    def file(self) -> Encoded | None:
        """The file that the image came from; None if it came from none, or was not kept."""
        return self._encoded if self._from_file else None

    @property
    def nbytes(self) -> int:
        """Bytes held, without pixels that other code holds."""
        held = 0 if self._held is None else _BYTES_A_PIXEL * self.size[0] * self.size[1]
        return held + (0 if self._encoded is None else len(self._encoded.data))

    def release(self) -> None:
        """Stop holding the pixels. Those without a file are first compressed on a thread."""
        if self._held is None:
            return
        if self._encoded is None:
            _packer.add(self)
        else:
            self._let_go()

    def pack(self) -> None:
        """Compress pixels that have no file, and stop holding them."""
        _ = self.encoded
        self._let_go()

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            _recent.add(held)

    def __reduce__(self) -> tuple[Any, ...]:
        made = self.encoded
        return _restored, (made.data, made.frame, made.normalize, self.size, self._from_file)


def _restored(
    data: bytes, frame: int, normalize: bool, size: tuple[int, int], from_file: bool
) -> StoredPixels:
    """Return pixels from a pickle, which are not decoded before they are used."""
    stored = StoredPixels.__new__(StoredPixels)
    stored.size = size
    stored._encoded = Encoded(data, frame, normalize)
    stored._from_file = from_file
    stored._held = None
    stored._seen = _no_pixels
    stored._lock = threading.Lock()
    return stored


def _no_pixels() -> None:
    return None


def shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return `image` at a smaller `size` (Lanczos filter after a box reduction)."""
    from PIL.Image import Resampling

    return image.resize(size, Resampling.LANCZOS, reducing_gap=3.0)


def to_png(image: Image.Image) -> bytes:
    """Return an RGB image as a PNG.

    Pillow's encoder holds the interpreter's lock, so that an answer would wait for it. NumPy and
    zlib do not.
    """
    import numpy as np

    values = np.asarray(image)
    gray = bool((values[..., :1] == values[..., 1:]).all())
    height, width = values.shape[:2]
    rows = values[..., 0] if gray else values.reshape(height, width * 3)
    # Filter 2 of PNG: each row as its difference from the one above.
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if gray else 2, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(filtered.data, _LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


class _Recent:
    """Pixels that were used last, up to `RECENT_BYTES`: a follow-up question uses them again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Image.Image] = OrderedDict()
        self._nbytes = 0

    def add(self, pixels: Image.Image) -> None:
        """Keep pixels, and drop the oldest ones beyond the limit."""
        size = _nbytes(pixels)
        if size > RECENT_BYTES:
            return
        with self._lock:
            if id(pixels) in self._kept:
                self._kept.move_to_end(id(pixels))
                return
            self._kept[id(pixels)] = pixels
            self._nbytes += size
            while self._nbytes > RECENT_BYTES:
                _, dropped = self._kept.popitem(last=False)
                self._nbytes -= _nbytes(dropped)

    def clear(self) -> None:
        """Drop all pixels."""
        with self._lock:
            self._kept.clear()
            self._nbytes = 0


def _nbytes(pixels: Image.Image) -> int:
    width, height = pixels.size
    return _BYTES_A_PIXEL * width * height


class _Packer:
    """Compresses pixels on one thread, which ends when there is nothing left to do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[weakref.ref[StoredPixels]] = deque()
        self._running = False

    def add(self, stored: StoredPixels) -> None:
        """Compress pixels soon. Those that nothing uses by then are skipped."""
        with self._lock:
            self._queue.append(weakref.ref(stored))
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._work, name="mlx-magic-pack", daemon=True).start()
        except RuntimeError:  # no more threads: they stay as they are
            self._running = False

    def restart(self) -> None:
        """Begin anew in a forked process, which has no other threads."""
        self.__init__()  # type: ignore[misc]

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._running = False
                    return
                stored = self._queue.popleft()()
            if stored is not None:
                stored.pack()
            del stored


_recent = _Recent()
_packer = _Packer()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_packer.restart)
