"""Opens hostile images in a separate process and prints the outcome of each.

A case that hangs or exhausts memory ends this process; its caller sees which one it was.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

OPENED = " as a Pillow image"
"""Suffix of a case whose file was already opened with Pillow."""

SECONDS = 2.0
"""Processor time for one case, of this machine with nothing else to do."""

MEGABYTES = 500
_PATIENCE = 6
_ADDRESSES = 6_000_000_000


@dataclass(frozen=True)
class Outcome:
    """Outcome of a case.

    Attributes
    ----------
    error : str or None
        Name of the class and its line.
    note : str or None
    size : tuple of int or None
    seconds : float
        Processor time, with that of its children.
    megabytes : float
        How much memory it took at most.
    noise : str
        What was written to standard error, by anything in the process or started by it.
    """

    error: str | None
    note: str | None
    size: tuple[int, int] | None
    seconds: float
    megabytes: float
    noise: str


def outcomes(names: list[str]) -> dict[str, Outcome]:
    """Open cases one after the other; those that are missing in the result never ended."""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-m", "tests.hostile.opening", *names],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=300,  # each case is ended by its processor time
    )
    read = [json.loads(line) for line in done.stdout.splitlines()]
    return {each.pop("name"): Outcome(**each) for each in read}


def _peak() -> float:
    words = Path("/proc/self/status").read_text().split("VmHWM:")
    return int(words[1].split()[0]) / 1000


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _used() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class _Heard:
    """What arrives on the file descriptor of standard error, that of C libraries too."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        os.dup2(self._file.fileno(), 2)

    def forget(self) -> None:
        self._file.seek(0)
        self._file.truncate()

    def read(self) -> str:
        sys.stderr.flush()
        self._file.seek(0)
        return self._file.read().decode(errors="replace")


def _open(data: Any) -> dict[str, Any]:
    from mlx_magic.errors import MlxMagicError
    from mlx_magic.images.opening import open_images

    try:
        (image,) = open_images(data, name="x")
    except MlxMagicError as error:
        return {"error": f"{type(error).__name__}: {error}", "note": None, "size": None}
    except Exception as error:
        return {"error": f"RAW {type(error).__name__}: {error}", "note": None, "size": None}
    return {"error": None, "note": image.note, "size": image.size}


def main(names: list[str]) -> None:
    """Print a line of JSON for each case."""
    from tests.hostile.image_cases import CASES, LARGE, png

    makers = {name: case.make for name, case in CASES.items()} | LARGE

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    heard = _Heard()
    _open(png(4, 4))  # imports
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    linux = sys.platform == "linux"
    for name in names:
        resource.setrlimit(resource.RLIMIT_CPU, (int(_used()) + 60, hard))
        data: Any = makers[name.removesuffix(OPENED)]()
        if name.endswith(OPENED):
            try:
                data = Image.open(io.BytesIO(data))
            except Exception as error:
                data = error  # which is no image either
        # What goes over the time is ended by the kernel, whatever it is doing.
        used = int(_used()) + _PATIENCE
        resource.setrlimit(resource.RLIMIT_CPU, (used, hard))
        heard.forget()
        before, start = _reset_peak() if linux else 0.0, _used()
        outcome = _open(data)
        outcome["seconds"] = _used() - start
        outcome["megabytes"] = _peak() - before if linux else 0.0
        outcome["noise"] = heard.read()
        print(json.dumps({"name": name, **outcome}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
