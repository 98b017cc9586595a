"""Run benchmarks: ``python -m benchmarks [NAME ...]``; without a name, all of them."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import (
    cancel,
    cell,
    endurance,
    engine,
    machine,
    pool,
    random_model,
    reuse,
    startup,
    warmup,
    wire,
)
from benchmarks.figures import Report
from benchmarks.live import live_kernel
from benchmarks.machine import ROOT
from mlx_magic.backends.device import platform
from mlx_magic.demo import folder as bundled

NAMES = (
    *("startup", "cell", "wire", "cancel", "warmup"),
    *("engine", "reuse", "pool", "endurance", "panel"),
)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Size:
    """Numbers of runs, and lengths of questions and answers.

    Attributes
    ----------
    starts, raw_starts : int
        Numbers of pairs of processes.
    pairs, tokens : int
        Number of pairs of cells, and the length of their answers in tokens.
    clicks : int
        Clicks per phase.
    words : int
        Length of the prompt that a click interrupts, in pairs of words.
    rates : list of float
        Rates of the scripted answers, in tokens per second.
    rounds, together : int
        Rounds of 8 and of 32 concurrent questions, and the length of their answers in tokens.
    chats : int
        Chats of ten turns. Twice as many further images get two questions each.
    requests : int
        Requests of all kinds, of which a third is cancelled.
    """

    starts: int
    raw_starts: int
    pairs: int
    tokens: int
    clicks: int
    words: int
    rates: list[float]
    rounds: int
    together: int
    chats: int
    requests: int


QUICK = Size(5, 1, 10, 200, 10, 1500, [0.0, 400.0], 2, 64, 1, 100)
FULL = Size(15, 5, 30, 400, 20, 1500, [0.0, 20.0, 60.0, 100.0], 7, 64, 5, 1000)
# A GPU prefills a short prompt before a click could arrive. Each word is one token there, too.
GPU_WORDS = 12_000


def main() -> None:
    """Run the benchmarks of the command line; print tables and write JSON."""
    given = _arguments()
    # Before any import of MLX.
    platform.prepare()
    size = FULL if given.full else QUICK
    if given.rounds is not None:
        size = replace(size, rounds=given.rounds)
    if given.pairs is not None:
        size = replace(size, pairs=given.pairs, chats=max(given.pairs // 6, 1))
    host = machine.describe()
    deadline = time.monotonic() + given.seconds
    names = given.names or list(NAMES)
    out = given.out or (RESULTS if given.full else ROOT / "build" / "benchmarks")

    def finished(report: Report, label: str = "") -> None:
        print(report.table(), flush=True)
        path = report.save(out, host, machine.label(host) + label)
        print(f"  -> {path}\n", flush=True)

    if "startup" in names:
        finished(startup.measure(pairs=size.starts, raw_runs=size.raw_starts))
    if "endurance" in names:
        finished(endurance.measure(requests=size.requests))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "panel" in names:
            # Needs a browser, so it is imported only if requested.
            from benchmarks import panel

            rates = [400.0, 100.0, 20.0] if given.full else [400.0]
            finished(panel.measure(folder, paints=size.starts, clicks=size.clicks, rates=rates))
        if {"cell", "wire", "cancel"} & {*names}:
            model = _model(given, folder)
            _in_kernel(names, model, size, deadline, folder, finished, gpu="gpu" in host)
        if {"warmup", "pool"} & {*names}:
            _in_process(names, given, size, deadline, folder, finished, gpu="gpu" in host)
        if {"engine", "reuse"} & {*names}:
            _engine(names, given, size, deadline, folder, finished, gpu="gpu" in host)


def _in_kernel(
    names: list[str],
    model: Path,
    size: Size,
    deadline: float,
    folder: Path,
    finished: Callable[..., None],
    *,
    gpu: bool,
) -> None:
    """Run the benchmarks that need a kernel, in one kernel, as the first answer may be slow."""
    with live_kernel() as kernel:
        if "cell" in names:
            finished(
                cell.measure(
                    kernel,
                    model,
                    cell.draw_image(folder),
                    pairs=size.pairs,
                    max_tokens=size.tokens,
                    least_rate=0.98 if gpu else 0.95,
                    deadline=deadline,
                ),
                f"-{model.name}",
            )
        if "cancel" in names:
            words = GPU_WORDS if gpu else size.words
            finished(
                cancel.measure(kernel, model, clicks=size.clicks, words=words, deadline=deadline),
                f"-{model.name}",
            )
        if "wire" in names:
            # Last, because its scripted sessions replace the real one.
            report = wire.measure_model(kernel, model)
            wire.measure_paced(kernel, model, folder, size.rates, report)
            finished(report)


def _in_process(
    names: list[str],
    given: argparse.Namespace,
    size: Size,
    deadline: float,
    folder: Path,
    finished: Callable[..., None],
    *,
    gpu: bool,
) -> None:
    """Run the benchmarks without a kernel; on a CPU with float32 weights, so that raw is fast."""
    source = _model(given, folder / "plain")
    model = random_model.twin(source, folder / "loaded" / source.name, tiles=False, float32=not gpu)
    if "warmup" in names:
        report = warmup.measure(model, folder, runs=size.raw_starts + 2, deadline=deadline)
        finished(report, f"-{source.name}")
    if "pool" in names:
        report = pool.measure(
            model, folder, pairs=2 * size.pairs, loads=size.starts, gpu=gpu, deadline=deadline
        )
        finished(report, f"-{source.name}")


def _engine(
    names: list[str],
    given: argparse.Namespace,
    size: Size,
    deadline: float,
    folder: Path,
    finished: Callable[..., None],
    *,
    gpu: bool,
) -> None:
    """Run the benchmarks that start processes, all with the same folder of weights."""
    source = _model(given, folder / "source")
    for tiles in (False, True):
        if ("reuse" if tiles else "engine") not in names:
            continue
        scratch = folder / ("tiles" if tiles else "together")
        scratch.mkdir()
        model = random_model.twin(source, scratch / source.name, tiles=tiles, float32=not gpu)
        if tiles:
            report = reuse.measure(
                model,
                scratch,
                pairs=2 * size.chats + 1,
                chats=size.chats,
                tokens=size.together // 2,
                deadline=deadline,
            )
        else:
            report = engine.measure(
                model,
                scratch,
                rounds=size.rounds,
                singles=size.pairs,
                tokens=size.together,
                gpu=gpu,
                deadline=deadline,
                manager=given.manager,
            )
        finished(report, f"-{source.name}")


def _model(given: argparse.Namespace, scratch: Path) -> Path:
    if given.model in random_model.names():
        return random_model.build(given.model, given.base, scratch / given.model)
    return Path(given.model).resolve()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--model",
        default="tiny",
        help="a folder made by benchmarks.random_model, or a name that it knows: tiny or 2b "
        "(random weights), endless (the base's own), qwen2_5_vl-3b, gemma3-4b, or a vision model "
        "of tools.tiny_models",
    )
    parser.add_argument(
        "--manager", type=Path, help="python of an environment with mlx-manager, to compare with"
    )
    parser.add_argument("--base", type=Path, default=bundled(), help="folder of the bundled model")
    parser.add_argument("--full", action="store_true", help="as many runs as the quoted figures")
    parser.add_argument(
        "--out", type=Path, help="folder for the JSON files: build/benchmarks, or results if --full"
    )
    parser.add_argument(
        "--pairs", type=int, help="of cells and questions of one at a time, in place of 10 or 30"
    )
    parser.add_argument(
        "--rounds", type=int, help="of 8 and 32 questions at once, in place of 2 or 7"
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no run after these")
    given = parser.parse_args()
    if given.model not in random_model.names() and not Path(given.model).is_dir():
        parser.error(f"there is no model and no folder {given.model!r}")
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}: use {', '.join(NAMES)}")
    return given


if __name__ == "__main__":
    main()
