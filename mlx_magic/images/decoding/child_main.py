"""Reads an image file from stdin and writes its pixels to stdout; run by `child_process.py`.

Does not import this package.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
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


def main() -> None:
    """Decode the image; errors are written as one line of JSON."""
    kind = sys.argv[1]
    seconds, memory, frame = (int(word) for word in sys.argv[2:5])
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every platform
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.path[:0] = sys.argv[5:]
    module, name = _READERS[kind]
    plugin: Any = importlib.import_module(f"PIL.{module}")
    plugin.DEFAULT_MAX_THREADS = _THREADS  # of libavif: each thread takes address space
    reader: Any = getattr(plugin, name)
    try:
        image = reader(io.BytesIO(sys.stdin.buffer.read()))
        if frame:
            image.seek(frame)
        image.load()
        plain = image.convert(_PLAIN[image.mode]) if image.mode in _PLAIN else image
        width, height = plain.size
        rows = max(1, _STRIP_PIXELS // max(1, width))
        head = {
            "mode": plain.mode,
            "size": plain.size,
            "rows": rows,
            "orientation": image.getexif().get(0x0112, 1),
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


if __name__ == "__main__":
    main()
