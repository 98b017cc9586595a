"""Text descriptions of the machine and its software."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""This checkout."""

PACKAGES = ("mlx", "mlx-cpu", "mlx-cuda-13", "mlx-vlm", "ipykernel", "ipython", "ipywidgets")


def processor() -> str:
    """Return the processor's name from the system."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.M)
        if found:
            return found[1].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def gpu() -> str:
    """Return the first NVIDIA GPU's name, or an empty string."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else ""


def describe() -> dict[str, str]:
    """Return the machine, its system, the relevant versions and the date."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    held = {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if name := gpu():
        held["gpu"] = name
    for package in PACKAGES:
        try:
            held[package] = version(package)
        except PackageNotFoundError:
            continue
    return held


def label(held: dict[str, str]) -> str:
    """Return the machine as part of a file name.

    Examples
    --------
    >>> label({"processor": "AMD EPYC, 2 cores"})
    'amd-epyc-2-cores'
    """
    words = held.get("gpu") or held["processor"]
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
