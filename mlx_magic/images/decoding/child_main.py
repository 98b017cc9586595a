"""Reads an image file from stdin and writes its pixels to stdout; run by `child_process.py`.

Does not import this package.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import io
import json
import math
import sys
import time
from typing import Any

_READERS = {
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
    "JPEG 2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
}
# Palette images are converted, since only pixels are sent.
_PLAIN = {"P": "RGB", "PA": "RGBA"}
_THREADS = 4
_STRIP_PIXELS = 2_000_000
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
# Limits of reading all pages of a file for their range.
_RANGE_SECONDS = 4
_RANGE_PIXELS = 256_000_000
_PAGE_PIXELS = 64_000_000


def main() -> None:
    """Decode the image; errors are written as one line of JSON."""
    kind = sys.argv[1]
    seconds, memory, frame = (int(word) for word in sys.argv[2:5])
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every platform
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    raw_mode, planes = sys.argv[5], [plane for plane in sys.argv[6].split(",") if plane]
    sys.path[:0] = sys.argv[7:]
    try:
        reader = _reader(kind)
        data = sys.stdin.buffer.read()
        image = reader(io.BytesIO(data))
        if frame:
            image.seek(frame)
        if raw_mode:
            _set_raw_mode(image, raw_mode)
        image.load()
        plain = image.convert(_PLAIN[image.mode]) if image.mode in _PLAIN else image
        width, height = plain.size
        rows = max(1, _STRIP_PIXELS // max(1, width))
        head = {
            "mode": plain.mode,
            "size": plain.size,
            "rows": rows,
            "orientation": image.getexif().get(0x0112, 1),
            "info": _of_colors(reader, data, planes) if raw_mode else _info(reader, data, image),
        }
        line = json.dumps(head, default=str)
    except BaseException as error:
        sys.stdout.write(json.dumps({"error": str(error) or type(error).__name__}) + "\n")
        return
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    for top in range(0, height, rows):  # in strips, so that a large image is not copied
        strip = plain.crop((0, top, width, min(top + rows, height))).tobytes()
        sys.stdout.buffer.write(len(strip).to_bytes(8, "big"))
        sys.stdout.buffer.write(strip)


def _reader(kind: str) -> Any:
    """Return the class that reads a format."""
    if kind == "HEIF":
        from pillow_heif import HeifImageFile

        return HeifImageFile
    module, name = _READERS[kind]
    plugin: Any = importlib.import_module(f"PIL.{module}")
    plugin.DEFAULT_MAX_THREADS = _THREADS  # of libavif: each thread takes address space
    return getattr(plugin, name)


def _info(reader: Any, data: bytes, image: Any) -> dict[str, Any]:
    """Return what else the conversion to RGB needs to know."""
    info: dict[str, Any] = {}
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        info["transparency"] = transparent
    if image.format == "HEIF":
        info["images"] = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and image.mode in _DEEP and getattr(image, "n_frames", 1) > 1:
        mode = image.mode
        info["pages"] = _pages_range(
            reader, data, 1, lambda page: page.mode == mode, lambda pages: _extrema(pages[0])
        )
    return info


def _of_colors(reader: Any, data: bytes, planes: list[str]) -> dict[str, Any]:
    """Return the ranges of the colors and of alpha of all pages, if `planes` asks for them.

    `planes` are the raw modes of the upper and the lower bytes, and the raw mode of the file.
    """
    if not planes:
        return {}
    *ways, mode = planes

    def values(pages: list[Any]) -> list[float]:
        from PIL import ImageChops

        for page, way in zip(pages, ways, strict=True):
            _set_raw_mode(page, way)
        bands = [page.split() for page in pages]
        # One way reads both bytes of gray and alpha as four bands.
        upper, lower = bands if len(bands) == 2 else (bands[0][0::2], bands[0][1::2])
        found = []
        for high, low in zip(upper, lower, strict=True):
            top = high.getextrema()[1]
            same = high.point([255 if value == top else 0 for value in range(256)])
            found.append(256 * top + ImageChops.darker(low, same).getextrema()[1])
        return found

    return {
        "pages": _pages_range(
            reader, data, len(ways), lambda page: mode in _raw_modes(page), values
        )
    }


def _pages_range(reader: Any, data: bytes, times: int, alike: Any, values: Any) -> dict[str, Any]:
    """Return the range of all pages, so that these stay comparable.

    Parameters
    ----------
    times : int
        How often each page is read, in different ways.
    alike : callable
        Whether a page counts.
    values : callable
        Returns the lowest and the highest value of a page, or the highest of each of its bands.

    Returns
    -------
    dict
        ``"low"`` and ``"high"``, the lowest and the highest of each of these values; ``"read"``
        and ``"count"``, the numbers of pages that were read in time and of all.
    """
    ends = time.process_time() + _RANGE_SECONDS
    files = [reader(io.BytesIO(data)) for _ in range(times)]
    low: list[float] = []
    high: list[float] = []
    read, pixels, count = 0, 0, 0
    with contextlib.suppress(EOFError, OSError, ValueError, SyntaxError):
        count = getattr(files[0], "n_frames", 1)
        while read < count and time.process_time() < ends and pixels < _RANGE_PIXELS:
            for file in files:
                file.seek(read)
            size = files[0].size[0] * files[0].size[1]
            if alike(files[0]) and size <= _PAGE_PIXELS:
                pixels += size * times
                found = values(files)
                low = [min(pair) for pair in zip(low, found, strict=True)] if low else found
                high = [max(pair) for pair in zip(high, found, strict=True)] if high else found
            read += 1
    return {"low": low, "high": high, "read": read, "count": count}


def _extrema(page: Any) -> list[float]:
    """Return the lowest and the highest finite value of a page; nothing if it has none."""
    found = [float(value) for value in page.getextrema()]
    if page.mode != "F" or all(map(math.isfinite, found)):
        return found
    finite = [value for value in array.array("f", page.tobytes()) if math.isfinite(value)]
    return [min(finite), max(finite)] if finite else []


def _raw_modes(image: Any) -> list[str]:
    """Return the raw mode of each part of an image that is not loaded yet."""
    return [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile]


def _set_raw_mode(image: Any, mode: str) -> None:
    """Let an image read its file in another raw mode."""
    image.tile = [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
        for tile in image.tile
    ]


if __name__ == "__main__":
    main()
