"""The modules of mlx_magic that a warm ``%%vision`` cell enters, with their numbers of calls.

python -m tools.cell_trip
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import mlx_magic
from mlx_magic import default_session, demo

_ROOT = str(Path(mlx_magic.__file__).parent)
CELL = "-o r --max-tokens 8 --no-show"


class Trip:
    """Counts calls of functions of mlx_magic, by module, on every thread.

    Attributes
    ----------
    calls : collections.Counter
        Calls by module (its path relative to the package).
    """

    def __init__(self) -> None:
        self.calls: collections.Counter[str] = collections.Counter()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Count an event of `sys.setprofile`."""
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(_ROOT):
            self.calls[name[len(_ROOT) + 1 :]] += 1


def count() -> Trip:
    """Run a cell with one image three times with the bundled model, and count the last run."""
    from IPython.core.interactiveshell import InteractiveShell
    from PIL import Image

    shell: Any = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "mlx_magic")
    engine = default_session.current().engine
    trip = Trip()
    for run in range(3):
        shell.user_ns["image"] = Image.new("RGB", (96, 64), (200, 30 * run, 40))
        watched = run == 2
        if watched:
            engine.call(lambda: sys.setprofile(trip)).result(60)
            threading.setprofile(trip)
            sys.setprofile(trip)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                shell.run_cell_magic("vision", f"image {CELL}", "What is in the picture?")
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            if watched:
                engine.call(lambda: sys.setprofile(None)).result(60)
    if shell.user_ns["r"].usage.completion_tokens < 1:
        raise RuntimeError("The cell wrote nothing: there is no trip to count.")
    return trip


def main() -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--by-module", action="store_true", help="list the modules, busiest first")
    given = parser.parse_args()
    if not demo.folder().exists():
        raise SystemExit("The bundled model is not there.")
    calls = count().calls
    if given.by_module:
        for name, number in calls.most_common():
            print(f"{number:6} {name}")
    print(f"{len(calls)} modules, {calls.total():,} calls")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
