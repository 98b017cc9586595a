"""Decodes in a child process, which is killed at a time limit or a cancel.

Used for decoders that cannot be interrupted and hold the interpreter's lock (OpenJPEG), that decode
more than the header declares (libavif), or that write warnings to standard error (libtiff; its
warning handlers are global, and other code in this process may rely on them).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from mlx_magic.errors import ImageDecodeError
from mlx_magic.images.decoding.stoppable_file import DecodeDeadline

_SCRIPT = Path(__file__).with_name("child_main.py")
_CHECK_SECONDS = 0.05
# Address space of Python and Pillow, without the image.
_PROGRAM_BYTES = 600_000_000


def decode_in_child(
    kind: str,
    data: bytes,
    watch: DecodeDeadline,
    *,
    seconds: int,
    memory: int,
    frame: int = 0,
    raw_mode: str = "",
    packages: Sequence[str] = (),
) -> Image.Image | None:
    """Return a loaded image in the mode of Pillow's decoder; palette images as RGB or RGBA.

    Parameters
    ----------
    kind : str
        A format that `child_main` supports.
    data : bytes
        The whole file.
    watch : DecodeDeadline
    seconds : int
        Maximum CPU time.
    memory : int
        Maximum bytes, in addition to those of Python and Pillow.
    frame : int
        Index of the page.
    raw_mode : str
        Reads the file in this raw mode of Pillow instead of its own.
    packages : sequence of str
        Folders with the decoder's package, besides that of Pillow.

    Returns
    -------
    PIL.Image.Image or None
        None if Python is embedded in another program and cannot be started. Of a page of deep
        gray, ``info["high"]`` is the highest value of all pages that were read in time.

    Raises
    ------
    ImageDecodeError
        If it takes too much time or memory.
    Cancelled
        If the token of `watch` was cancelled; the process is killed.
    ValueError
        If it is damaged, with Pillow's message.
    """
    if not sys.executable:
        return None
    command = [
        sys.executable, "-I", str(_SCRIPT), kind, str(seconds), str(memory + _PROGRAM_BYTES),
        str(frame), raw_mode, str(Path(PIL.__file__).parents[1]), *packages,
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPJ_NUM_THREADS": "1"},
    ) as process:
        answers: list[Image.Image | dict[str, Any]] = []
        exchange = threading.Thread(target=_exchange, args=(process, data, answers), daemon=True)
        exchange.start()
        try:
            while exchange.is_alive():
                watch.checkpoint()
                exchange.join(_CHECK_SECONDS)
        finally:
            process.kill()
            exchange.join()
    answer = answers[0] if answers else {}
    if isinstance(answer, Image.Image):
        return answer
    if "error" in answer:
        raise ValueError(str(answer["error"]))
    raise ImageDecodeError(
        f"{watch.label} is a {kind} that takes more than {seconds} seconds or "
        f"{memory // 1_000_000} MB to decode: save it as a PNG or JPEG.",
        source=watch.label,
    )


def _exchange(
    process: subprocess.Popen[bytes], data: bytes, answers: list[Image.Image | dict[str, Any]]
) -> None:
    """Send the file and receive the image; a process that was killed leaves no result."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(data)
        process.stdin.close()
        head = json.loads(process.stdout.readline(10_000) or b"null")
        if not isinstance(head, dict) or "error" in head:
            answers.append(head or {})
            return
        width, height = head["size"]
        image = Image.new(head["mode"], (width, height))
        for top in range(0, height, head["rows"]):
            rows = min(head["rows"], height - top)
            size = int.from_bytes(process.stdout.read(8), "big")
            strip = Image.frombytes(head["mode"], (width, rows), process.stdout.read(size))
            image.paste(strip, (0, top))
        image.getexif()[0x0112] = head["orientation"]
        image.info.update(head["info"])
        answers.append(image)
    except (OSError, ValueError):
        return
