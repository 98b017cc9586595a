"""Reads a JPEG 2000 from stdin and writes its pixels to stdout; `jpeg2000.py` runs it as a script.

OpenJPEG cannot be interrupted, and Pillow holds the interpreter's lock while it works: in a
process of its own it can be killed, and nothing else stands still. Imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys


def main() -> None:
    """Decode; what fails is one line of JSON."""
    seconds, memory = (int(word) for word in sys.argv[1:3])
    with contextlib.suppress(ImportError, ValueError, OSError):  # not everywhere
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.path[:0] = sys.argv[3:]
    from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

    try:
        image = Jpeg2KImageFile(io.BytesIO(sys.stdin.buffer.read()))
        image.load()
        plain = image.convert("RGB") if image.mode == "P" else image
        head = {
            "mode": plain.mode,
            "size": plain.size,
            "orientation": image.getexif().get(0x0112, 1),
        }
    except BaseException as error:
        sys.stdout.write(json.dumps({"error": str(error) or type(error).__name__}) + "\n")
        return
    sys.stdout.write(json.dumps(head) + "\n")
    sys.stdout.flush()
    width, height = plain.size
    rows = max(1, 4_000_000 // max(1, width))
    for top in range(0, height, rows):  # in strips: a large picture is not held twice
        strip = plain.crop((0, top, width, min(top + rows, height)))
        sys.stdout.buffer.write(strip.tobytes())


if __name__ == "__main__":
    main()
