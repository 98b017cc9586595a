"""Compares this checkout with another one of the project, such as the commit before a change.

    git worktree add ../before COMMIT
    python -m benchmarks.before ../before --pairs 40

Both run in the same environment, in separate processes, and take turns. The report has the median
of the ratios, and an interval that contains the true median with 95 % confidence.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from benchmarks import cell, live, machine, random_model
from benchmarks.engine import in_turn
from benchmarks.figures import Report, interval, ratios
from benchmarks.live import ROOT, LiveKernel, live_kernel
from benchmarks.peers import Peer, Worker, resting, running
from benchmarks.reuse import twice
from benchmarks.workload import Burst, DrawnImages, load, matches
from mlx_magic.backends.device import platform
from mlx_magic.demo import folder as bundled

LEAST = 0.97
MANY = 32
TOKENS = 64


def main() -> None:
    """Measure, print the table and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before", description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks")
    given = parser.parse_args()
    platform.prepare()
    host = machine.describe()
    with tempfile.TemporaryDirectory() as scratch:
        report = measure(given.checkout.resolve(), Path(scratch), pairs=given.pairs)
    print(report.table())
    print(f"  -> {report.save(given.out, host, machine.label(host))}")


def measure(checkout: Path, folder: Path, *, pairs: int) -> Report:
    """Ask both checkouts the same questions, in turns.

    Parameters
    ----------
    checkout : Path
        The other checkout.
    folder : Path
        Empty folder for images, a model and logs.
    pairs : int
        Pairs of each kind; a fourth of that for many concurrent questions.
    """
    report = Report("before", {"other checkout": checkout.name, "pairs": pairs})
    model = random_model.build("endless", bundled(), folder / "endless")
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with running(
        [
            lambda: _worker("before", checkout, model, folder),
            lambda: _worker("now", ROOT, model, folder),
        ]
    ) as peers:
        _engine(peers, folder, seen, pairs, report)
    with ExitStack() as stack:
        kernels = {
            name: stack.enter_context(_kernel(root))
            for name, root in (("before", checkout), ("now", ROOT))
        }
        _cells(kernels, folder, model, seen, pairs)
    for what, held in seen.items():
        # All values are rates, so above 1 is better.
        found = ratios(held["now"], held["before"])
        report.add(f"{what}, now/before", "", found)
        low, high = interval(found)
        report.settings[what] = f"95 %: {low:.3f} to {high:.3f}"
        report.expect(f"{what}: upper end of the interval", high, LEAST, at_least=True)
    report.samples = {what: dict(held) for what, held in seen.items()}
    return report


def _engine(
    peers: list[Peer],
    folder: Path,
    seen: dict[str, dict[str, list[float]]],
    pairs: int,
    report: Report,
) -> None:
    images = DrawnImages(folder / "images")
    for peer in peers:
        for count in (1, 8, MANY):
            peer.answer(load(images, count, 0, same=False), TOKENS)
    same = total = 0
    for turn in range(1, pairs + 1):
        plan = [(1, 3 * TOKENS)] + ([(MANY, TOKENS)] if turn % 4 == 1 else [])
        for count, tokens in plan:
            asks = load(images, count, turn, same=False)
            bursts: dict[str, Burst] = {}
            for peer in in_turn(peers, turn):
                with resting(peers, but=peer):
                    bursts[peer.name] = peer.answer(asks, tokens)
            same += matches(bursts["now"].texts, bursts["before"].texts)
            total += count
            for name, burst in bursts.items():
                _note(seen, count, name, burst)
        image = images.draw()
        for peer in in_turn(peers, turn):
            with resting(peers, but=peer):
                _, second = twice(peer, image, turn, 16)
            seen["reuse, first token of a second question"][peer.name].append(1 / second.first)
    report.settings["same text"] = f"{same} of {total}"


def _note(seen: dict[str, dict[str, list[float]]], count: int, name: str, burst: Burst) -> None:
    if count == 1:
        seen["engine, alone, decode"][name].append(burst.answers[0].decode)
        seen["engine, alone, first token"][name].append(1 / burst.answers[0].first)
    else:
        seen[f"engine, {count} at once"][name].append(burst.rate)


def _cells(
    kernels: dict[str, LiveKernel],
    folder: Path,
    model: Path,
    seen: dict[str, dict[str, list[float]]],
    pairs: int,
) -> None:
    image = cell.draw_image(folder)
    code = (
        f"%%vision {str(image)!r} -m {str(model)!r} --max-tokens {3 * TOKENS} "
        "--temperature 0 -o answer\nDescribe this picture in every detail."
    )
    for kernel in kernels.values():
        kernel.do("clock = in_kernel.CellClock()")
        for _ in range(3):
            kernel.do(code)
    for turn in range(pairs):
        order = list(kernels) if turn % 2 else list(kernels)[::-1]
        for name in order:
            kernels[name].do("in_kernel.forget()")
            kernels[name].timed(code)
            kernels[name].do("numbers = clock.ours(answer)")
            numbers = kernels[name].read("numbers")
            seen["cell, decode"][name].append(numbers["rate"])
            seen["cell, first token"][name].append(1 / numbers["ttft"])


def _worker(name: str, root: Path, model: Path, folder: Path) -> Worker:
    """Start a session of a checkout in a separate process."""
    worker = Worker("ours", model, folder, root=root)
    worker.name = name
    return worker


@contextmanager
def _kernel(root: Path) -> Iterator[LiveKernel]:
    """Start a kernel that imports a checkout."""
    with mock.patch.object(live, "ROOT", root), live_kernel() as kernel:
        yield kernel


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
