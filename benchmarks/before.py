"""Compares this checkout with others of the project, such as the commit before a change.

    git worktree add ../before COMMIT
    python -m benchmarks.before ../before --pairs 40

All run in the same environment, in separate processes, and take turns. The report has the median
of the ratios, and an interval that contains the true median with 95 % confidence. A checkout
without one of the mechanisms shows what that mechanism is worth.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import psutil  # type: ignore[import-untyped]

from benchmarks import cell, live, machine, random_model
from benchmarks.engine import in_turn
from benchmarks.figures import Report, bootstrapped, ratios
from benchmarks.live import LiveKernel, live_kernel
from benchmarks.machine import ROOT
from benchmarks.peers import MemoryWatch, Worker, resting, running
from benchmarks.reuse import twice
from benchmarks.workload import Ask, Burst, DrawnImages, load, matches
from mlx_magic.backends.device import platform
from mlx_magic.demo import folder as bundled

LEAST = 0.97
MANY = 32
SEVERAL = 4
TOKENS = 64
NOW = "now"

Seen = dict[str, dict[str, list[float]]]


def main() -> None:
    """Measure, print the table and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before", description=__doc__)
    parser.add_argument("checkouts", type=Path, nargs="+", metavar="checkout")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--bursts", type=int, help="pairs of 32 questions; a fourth by default")
    parser.add_argument("--loads", type=int, default=0, help="pairs of loads")
    parser.add_argument("--model", type=Path, help="the bundled model's weights by default")
    parser.add_argument("--tokens", type=int, default=3 * TOKENS, help="of a single answer")
    parser.add_argument("--no-cells", action="store_true", help="measure no kernels")
    parser.add_argument("--name", default="before", help="of the JSON file")
    parser.add_argument("--seconds", type=float, default=86400, help="no pair begins after this")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks")
    given = parser.parse_args()
    platform.prepare()
    host = machine.describe()
    with tempfile.TemporaryDirectory() as scratch:
        report = measure(given, Path(scratch))
    print(report.table())
    print(f"  -> {report.save(given.out, host, machine.label(host))}")


def measure(given: argparse.Namespace, folder: Path) -> Report:
    """Ask all checkouts the same questions, in turns.

    Parameters
    ----------
    given : Namespace
        The arguments of the command line.
    folder : Path
        Empty folder for images, a model and logs.
    """
    roots = {NOW: ROOT, **{path.name: path.resolve() for path in given.checkouts}}
    model = given.model or random_model.build("endless", bundled(), folder / "endless")
    report = Report(given.name, {"model": model.name, "other checkouts": ", ".join(_others(roots))})
    seen: Seen = defaultdict(lambda: defaultdict(list))
    starts = [_starter(name, root, model, folder) for name, root in roots.items()]
    with running(starts) as peers:
        workers = [peer for peer in peers if isinstance(peer, Worker)]
        with MemoryWatch(workers) as memory:
            _engine(workers, folder, seen, given, report)
        _loads(workers, seen, given.loads)
    if not given.no_cells:
        with ExitStack() as stack:
            kernels = {name: stack.enter_context(_kernel(root)) for name, root in roots.items()}
            _cells(kernels, folder, model, seen, given.pairs)
    for name in _others(roots):
        for what, held in seen.items():
            # All values are rates, so above 1 is better for this checkout.
            found = ratios(held[NOW], held[name])
            report.add(f"{what}, now/{name}", "", found)
            low, high = bootstrapped(found)
            report.settings[f"{what}, now/{name}"] = f"95 %: {low:.3f} to {high:.3f}"
            report.expect(f"{what}, now/{name}: upper end", high, LEAST, at_least=True)
    for name, most in memory.most.items():
        report.add(f"{name}: most memory of the process", "MiB", [most / 2**20])
    report.samples = {what: dict(held) for what, held in seen.items()}
    return report


def _others(roots: dict[str, Path]) -> list[str]:
    """Return the names of the other checkouts."""
    return [name for name in roots if name != NOW]


def _engine(
    peers: list[Worker],
    folder: Path,
    seen: Seen,
    given: argparse.Namespace,
    report: Report,
) -> None:
    images = DrawnImages(folder / "images")
    for peer in peers:
        # The first ones compile kernels, and show how the image processor is called.
        for count in (1, 8, MANY):
            _timed(peer, peers, load(images, count, 0, same=False), TOKENS)
        _timed(peer, peers, [_about_several(images, 0)], 8)
    bursts = given.pairs // 4 if given.bursts is None else given.bursts
    same = total = 0
    end = time.monotonic() + given.seconds
    for turn in range(1, given.pairs + 1):
        if time.monotonic() > end:
            break
        plan = [("alone", load(images, 1, turn, same=False), given.tokens)]
        plan.append(("several images", [_about_several(images, turn)], 8))
        if turn * bursts // given.pairs > (turn - 1) * bursts // given.pairs:
            plan.append((f"{MANY} at once", load(images, MANY, turn, same=False), TOKENS // 2))
        for what, asks, tokens in plan:
            found: dict[str, Burst] = {}
            for peer in _order(peers, turn):
                burst, spent = _timed(peer, peers, asks, tokens)
                found[peer.name] = burst
                _note(seen, what, peer.name, burst, spent)
            for name in found:
                if name != NOW:
                    same += matches(found[NOW].texts, found[name].texts)
                    total += len(asks)
        picture = images.draw()
        for peer in _order(peers, turn):
            with resting(peers, but=peer):
                _, second = twice(peer, picture, turn, 16)
            seen["second question, first token"][peer.name].append(1 / second.first)
    report.settings["pairs"] = len(seen["alone, decode"][NOW])
    report.settings["same text"] = f"{same} of {total}"


def _order(peers: list[Worker], turn: int) -> list[Worker]:
    """Return the peers in an order in which each follows each other one at times."""
    order = in_turn(peers, turn)
    return order if turn // len(peers) % 2 else order[::-1]


def _about_several(images: DrawnImages, turn: int) -> Ask:
    names = [images.draw() for _ in range(SEVERAL)]
    return Ask(f"Question {turn}: What is the difference?", names[0], more=tuple(names[1:]))


def _timed(
    peer: Worker, peers: Sequence[Worker], asks: list[Ask], tokens: int
) -> tuple[Burst, float]:
    """Return the answers, and the seconds of processor time that they took."""
    process = psutil.Process(peer.pid)
    with resting(peers, but=peer):
        before = process.cpu_times()
        burst = peer.answer(asks, tokens)
        after = process.cpu_times()
    return burst, after.user + after.system - before.user - before.system


def _note(seen: Seen, what: str, name: str, burst: Burst, spent: float) -> None:
    if what == "alone":
        seen["alone, decode"][name].append(burst.answers[0].decode)
        seen["alone, median step"][name].append(1 / burst.answers[0].step)
    if len(burst.answers) == 1:
        seen[f"{what}, first token"][name].append(1 / burst.answers[0].first)
    else:
        seen[what][name].append(burst.rate)
        seen[f"{what}, last first token"][name].append(1 / burst.last_first)
    seen[f"{what}, processor time"][name].append(1 / max(spent, 0.01))


def _loads(peers: list[Worker], seen: Seen, count: int) -> None:
    """Load the model again, without and with a cancel in the middle."""
    usual = 1.0
    for turn in range(count + 1):
        for peer in _order(peers, turn):
            with resting(peers, but=peer):
                whole = peer.load_again()
                usual = whole["seconds"] if not turn else usual
                stopped = peer.load_again(usual * (0.1 + 0.8 * turn / (count + 1)))
            if turn:
                seen["load"][peer.name].append(1 / whole["seconds"])
                seen["load, longest slice"][peer.name].append(1 / whole["slice"])
                seen["load, peak memory of MLX"][peer.name].append(1 / whole["peak"])
                seen["load, cancel to a free thread"][peer.name].append(1 / stopped["seconds"])


def _cells(
    kernels: dict[str, LiveKernel],
    folder: Path,
    model: Path,
    seen: Seen,
    pairs: int,
) -> None:
    picture = cell.draw_image(folder)
    code = (
        f"%%vision {str(picture)!r} -m {str(model)!r} --max-tokens {3 * TOKENS} "
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


def _starter(name: str, root: Path, model: Path, folder: Path) -> Callable[[], Worker]:
    """Return a function that starts a session of a checkout in a separate process."""

    def start() -> Worker:
        worker = Worker("ours", model, folder, root=root)
        worker.name = name
        return worker

    return start


@contextmanager
def _kernel(root: Path) -> Iterator[LiveKernel]:
    """Start a kernel that imports a checkout."""
    with mock.patch.object(live, "ROOT", root), live_kernel() as kernel:
        yield kernel


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
