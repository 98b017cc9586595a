"""The first request after a load compared with the second, in fresh processes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import Report, ratios
from benchmarks.machine import ROOT
from benchmarks.workload import Ask, DrawnImages

MOST = 1.5
TOKENS = 16
# All of different length: CUDA prepares attention for each new length of a prompt, for raw mlx-vlm
# and for ours. With equal lengths the ratio would show that instead of the load.
QUESTIONS = ("What is this?", "Which shapes do you see in this picture?", "Name every colour here.")


def measure(model: Path, folder: Path, *, runs: int, deadline: float) -> Report:
    """Load and ask, in one process per run.

    Parameters
    ----------
    model, folder : Path
        The model, and an empty folder for images.
    runs : int
        Processes of each kind.
    deadline : float
        In seconds of `time.monotonic`; no run begins after it.
    """
    images = DrawnImages(folder / "images")
    found: dict[str, list[dict[str, Any]]] = {"raw": [], "ours": []}
    for number in range(runs):
        if number and time.monotonic() > deadline:
            break
        for name in ("raw", "ours") if number % 2 else ("ours", "raw"):
            found[name].append(_process(name, model, [images.draw() for _ in QUESTIONS]))
    report = Report("warmup", settings={"model": model.name})
    for name, held in found.items():
        report.add(f"{name}: load", "s", [run["load"] for run in held])
        report.add(f"{name}: first token of the first", "ms", [1e3 * r["first"][0] for r in held])
        share = report.add(
            f"{name}: first request/second, first token",
            "",
            [run["first"][0] / run["first"][1] for run in held],
        )
        if name == "ours":
            report.expect("first request/second, first token", share.median, MOST)
    both = [found[name] for name in ("ours", "raw")]
    report.add(
        "ours/raw: load and first request",
        "",
        ratios(*([run["load"] + run["first"][0] for run in held] for held in both)),
    )
    report.samples = {name: list(held) for name, held in found.items()}
    return report


def _process(name: str, model: Path, images: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.warmup", name, str(model), *images],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Load with one of both, ask each question, and print the seconds as JSON."""
    from benchmarks.ways import Ours, Raw
    from mlx_magic.backends.device import platform

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["raw", "ours"])
    parser.add_argument("model")
    parser.add_argument("images", nargs="+")
    given = parser.parse_args()
    platform.prepare()
    began = time.perf_counter()
    way = (Raw if given.name == "raw" else Ours)(given.model)
    load = time.perf_counter() - began
    asks = [Ask(*pair) for pair in zip(QUESTIONS, given.images, strict=True)]
    first = [way.answer([ask], TOKENS).answers[0].first for ask in asks]
    print(json.dumps({"load": load, "first": first}))


if __name__ == "__main__":
    main()
