"""Reads an image file from stdin and writes its pixels to stdout; run by `child_process.py`.

Does not import this package.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
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
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
# Limits of reading all pages of a file for their highest value.
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
    raw_mode = sys.argv[5]
    sys.path[:0] = sys.argv[6:]
    try:
        reader = _reader(kind)
        data = sys.stdin.buffer.read()
        image = reader(io.BytesIO(data))
        if frame:
            image.seek(frame)
        if raw_mode:
            image.tile = [tile._replace(args=(raw_mode, *tile.args[1:])) for tile in image.tile]
        image.load()
        plain = image.convert(_PLAIN[image.mode]) if image.mode in _PLAIN else image
        width, height = plain.size
        rows = max(1, _STRIP_PIXELS // max(1, width))
        head = {
            "mode": plain.mode,
            "size": plain.size,
            "rows": rows,
            "orientation": image.getexif().get(0x0112, 1),
            "info": {} if raw_mode else _info(reader, data, image),
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
    if image.format == "TIFF" and image.mode in _DEEP and getattr(image, "n_frames", 1) > 1:
        info["high"], info["read"] = _highest(reader(io.BytesIO(data)), image.mode)
    return info


def _highest(pages: Any, mode: str) -> tuple[float, int]:
    """Return the highest value of all pages, so that these stay comparable, and their number."""
    ends = time.process_time() + _RANGE_SECONDS
    high, read, pixels = 0.0, 0, 0
    with contextlib.suppress(EOFError, OSError, ValueError, SyntaxError):
        while time.process_time() < ends and pixels < _RANGE_PIXELS:
            pages.seek(read)
            if pages.mode == mode and pages.size[0] * pages.size[1] <= _PAGE_PIXELS:
                pixels += pages.size[0] * pages.size[1]
                high = max(high, pages.getextrema()[1])
            read += 1
    return high, read


if __name__ == "__main__":
    main()
