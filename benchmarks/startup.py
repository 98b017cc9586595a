"""The time that ``import mlx_magic`` and ``%load_ext`` add to the start of a bare IPython."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

from benchmarks.figures import Report
from benchmarks.machine import ROOT

MOST_ADDED = 150.0

BARE = "pass"
OURS = "import mlx_magic\nget_ipython().run_line_magic('load_ext', 'mlx_magic')"
RAW = "import mlx_vlm"


def measure(*, pairs: int, raw_runs: int) -> Report:
    """Start whole processes: bare, ours, bare, ours, and so on; then pairs of bare and raw mlx-vlm.

    Parameters
    ----------
    pairs : int
        Pairs of bare and ours.
    raw_runs : int
        Pairs of bare and raw.
    """
    report = Report("startup", {"process": "ipython -c, from start to exit"})
    with tempfile.TemporaryDirectory() as home:
        for code in (BARE, OURS, RAW):
            _start(code, home)
        samples = [(_start(BARE, home), _start(OURS, home)) for _ in range(pairs)]
        raw = [(_start(BARE, home), _start(RAW, home)) for _ in range(raw_runs)]
    report.add("bare IPython", "ms", [bare.wall for bare, _ in samples])
    added = report.add("added by mlx-magic", "ms", [b.wall - a.wall for a, b in samples]).median
    # Less sensitive to other load on the machine.
    report.add("added, processor time", "ms", [b.processor - a.processor for a, b in samples])
    report.add("added by import mlx_vlm", "ms", [b.wall - a.wall for a, b in raw])
    report.expect("added by mlx-magic, ms", added, MOST_ADDED)
    report.samples = {
        "bare, ours": [(asdict(a), asdict(b)) for a, b in samples],
        "bare, raw": [(asdict(a), asdict(b)) for a, b in raw],
    }
    return report


@dataclass(frozen=True, slots=True)
class Start:
    """One whole process.

    Attributes
    ----------
    wall, processor : float
        Wall time and processor time, in milliseconds.
    """

    wall: float
    processor: float


def _start(code: str, home: str) -> Start:
    environment = {**os.environ, "IPYTHONDIR": home, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", code],
        env=environment,
        cwd=home,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Start(1000 * wall, 1000 * used)
