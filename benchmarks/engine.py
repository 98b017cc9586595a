"""Concurrent questions: ours against raw mlx-vlm, one of its batches, and its server."""

from __future__ import annotations

import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.figures import Report, ratios, summary
from benchmarks.peers import MemoryWatch, Peer, Worker, on_cores, resting, running
from benchmarks.servers import mlx_manager, vlm_server
from benchmarks.ways import NAMES
from benchmarks.workload import Burst, DrawnImages, load, matches

MOST = 32
COUNTS = (1, 8, MOST)
WORDS = {
    "raw": "raw",
    "batch": "one BatchGenerator",
    "server": "mlx-vlm's server",
    "mlx-manager": "mlx-manager",
    "ours": "ours",
}
NEEDED = ("raw", "ours")
LONGEST = 160
"""Characters of a line that says why a peer failed."""
SERVER_NEEDS = ("fastapi", "uvicorn")

P = TypeVar("P", bound=Peer)


@dataclass(frozen=True, slots=True)
class Limits:
    """Targets of ours.

    Attributes
    ----------
    decode, first : float
        Single questions, ratio to raw: minimum of tokens per second, maximum of time to the first
        token.
    batch : float
        Concurrent questions, ratio to raw one after the other: minimum.
    server, last_first : float or None
        Concurrent questions, ratio to mlx-vlm's server: minimum throughput, maximum time until the
        last request has its first token. None is no target.
    """

    decode: float = 0.98
    first: float = 1.05
    batch: float = 2.0
    server: float | None = 1.5
    last_first: float | None = 0.5


CPU_LIMITS = Limits()
GPU_LIMITS = Limits(batch=4.0, server=None, last_first=None)


@dataclass(slots=True)
class Rounds:
    """All answers, by kind of load and by peer.

    Attributes
    ----------
    bursts : dict
        Bursts by ``(count, same image)`` and name; equal positions belong to the same round.
    """

    bursts: dict[tuple[int, bool], dict[str, list[Burst]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def agreement(self, name: str) -> str:
        """Return how many texts of a peer are the same as raw's."""
        same = total = 0
        for held in self.bursts.values():
            for burst, raw in zip(held[name], held["raw"], strict=True):
                same += matches(burst.texts, raw.texts)
                total += len(raw.texts)
        return f"{same} of {total}"


def starts(
    model: Path,
    folder: Path,
    *,
    ways: Sequence[str] = NAMES,
    manager: Path | None = None,
) -> list[Callable[[], Peer]]:
    """Return a start function for each peer that can run here.

    Parameters
    ----------
    model, folder : Path
    ways : sequence of str
        Names of peers of `benchmarks.ways`.
    manager : Path or None
        Interpreter of an environment with mlx-manager.
    """
    found: list[Callable[[], Peer]] = [partial(Worker, name, model, folder) for name in ways]
    if all(importlib.util.find_spec(name) for name in SERVER_NEEDS):
        found.append(partial(vlm_server, model, folder))
    if manager is not None:
        found.append(partial(mlx_manager, model, folder, manager))
    return found


def measure(
    model: Path,
    folder: Path,
    *,
    rounds: int,
    singles: int,
    tokens: int,
    gpu: bool,
    deadline: float,
    manager: Path | None = None,
) -> Report:
    """Ask all peers the same questions, in turns; the first peer changes from round to round.

    Parameters
    ----------
    model, folder : Path
        The model, and an empty folder for images and logs.
    rounds : int
        Rounds of 8 and of 32 concurrent questions.
    singles : int
        Rounds of a single question.
    tokens : int
        Length of an answer; three times that for single questions.
    gpu : bool
        Whether a GPU computes: then the targets differ, and single questions run on few cores.
    deadline : float
        In seconds of `time.monotonic`; no round begins after it.
    manager : Path or None
        See `starts`.
    """
    images = DrawnImages(folder / "images")
    with running(starts(model, folder, manager=manager)) as started:
        peers, failed = _warmed_up(started, images, tokens)
        with MemoryWatch(peers) as memory:
            plan = _plan(rounds, singles)
            held = _run(peers, images, plan, tokens, deadline, few_cores=gpu)
    limits = GPU_LIMITS if gpu else CPU_LIMITS
    report = _report(held, [peer.name for peer in peers], limits, memory.most)
    lengths = f"{3 * tokens} alone, {tokens} together"
    report.settings = {"model": model.name, "tokens": lengths, **report.settings, **failed}
    return report


def _warmed_up(
    peers: Sequence[Peer], images: DrawnImages, tokens: int
) -> tuple[list[Peer], dict[str, str]]:
    """Let the peers answer once; returns those that can, and why the others cannot.

    Some architectures fail in the library's batch or server, and are compared with the rest.

    Raises
    ------
    RuntimeError
        Raw or ours failed.
    """
    able: list[Peer] = []
    failed: dict[str, str] = {}
    for peer in peers:
        try:
            # Compiles the kernels of a GPU, for a batch of each size. Raw answers one by one.
            for count in COUNTS[: 1 if peer.name == "raw" else None]:
                peer.answer(load(images, count, 0, same=False), tokens)
        except RuntimeError as error:
            if peer.name in NEEDED:
                raise
            peer.close()
            failed[WORDS[peer.name]] = f"failed: {_reason(error)}"
        else:
            able.append(peer)
    return able, failed


def _reason(error: RuntimeError) -> str:
    """Return the first line of a process's error, and the last line that it wrote."""
    first, *wrote = str(error).splitlines()
    first = first.removesuffix("; it wrote last:")
    parts = [first, *(line for line in wrote[-1:] if line.partition(": ")[2] not in first)]
    return ": ".join(part if len(part) <= LONGEST else f"{part[:LONGEST]}…" for part in parts)


def _run(
    peers: Sequence[Peer],
    images: DrawnImages,
    plan: Iterable[tuple[int, bool]],
    tokens: int,
    deadline: float,
    *,
    few_cores: bool,
) -> Rounds:
    held = Rounds()
    for turn, (count, same) in enumerate(plan, start=1):
        if time.monotonic() > deadline and (count, same) in held.bursts:
            continue
        asks = load(images, count, turn, same=same)
        # Concurrent questions may use all cores, and products on a CPU do.
        with on_cores(peers, turn) if few_cores and count == 1 else nullcontext():
            for peer in in_turn(peers, turn):
                with resting(peers, but=peer):
                    burst = peer.answer(asks, 3 * tokens if count == 1 else tokens)
                held.bursts[count, same][peer.name].append(burst)
    return held


def _plan(rounds: int, singles: int) -> Iterator[tuple[int, bool]]:
    """Yield the number of concurrent questions, and whether they are about one image."""
    for number in range(max(rounds, singles)):
        if number < singles:
            yield 1, False
        if number < rounds:
            for count in COUNTS[1:]:
                yield count, False
                yield count, True


def in_turn(peers: Sequence[P], turn: int) -> list[P]:
    """Return the peers in an order that begins with a different one at each turn."""
    at = turn % len(peers)
    return [*peers[at:], *peers[:at]]


def _report(held: Rounds, names: list[str], limits: Limits, memory: dict[str, int]) -> Report:
    others = [name for name in WORDS if name in names and name != "raw"]
    report = Report("engine")
    for name in others:
        report.settings[f"same text, {WORDS[name]} and raw"] = held.agreement(name)
    if "server" not in names:
        report.settings["mlx-vlm's server"] = "not installed"
    _alone(report, held.bursts[1, False], limits)
    for count in COUNTS[1:]:
        for same in (False, True):
            bursts = held.bursts[count, same]
            what = f"{count} at once, {'one image' if same else 'different images'}"
            _together(report, what, bursts, others)
            if count == MOST:
                _expect(report, what, bursts, limits)
    for name in ("raw", *others):
        peaks = [burst.peak for held in held.bursts.values() for burst in held[name]]
        if any(peaks):
            report.add(f"{WORDS[name]}: most memory of MLX", "MiB", [max(peaks) / 2**20])
        report.add(f"{WORDS[name]}: most memory of the process", "MiB", [memory[name] / 2**20])
    report.samples = {
        f"{count}, {'one image' if same else 'different images'}": {
            name: [burst.numbers() for burst in bursts] for name, bursts in found.items()
        }
        for (count, same), found in held.bursts.items()
    }
    return report


def _alone(report: Report, bursts: dict[str, list[Burst]], limits: Limits) -> None:
    def all_of(name: str, key: str) -> list[float]:
        return [getattr(burst.answers[0], key) for burst in bursts[name]]

    report.add("alone, raw: decode", "tokens/s", all_of("raw", "decode"))
    report.add("alone, raw: first token", "ms", [1000 * at for at in all_of("raw", "first")])
    for key, what, limit in (
        ("decode", "decode", limits.decode),
        ("first", "first token", limits.first),
    ):
        if "server" in bursts:
            pairs = ratios(all_of("server", key), all_of("raw", key))
            report.add(f"alone, mlx-vlm's server/raw: {what}", "", pairs)
        pairs = ratios(all_of("ours", key), all_of("raw", key))
        found = report.add(f"alone, ours/raw: {what}", "", pairs).median
        report.expect(f"alone, ours/raw: {what}", found, limit, at_least=key == "decode")
    pairs = ratios(all_of("ours", "step"), all_of("raw", "step"))
    report.add("alone, ours/raw: the median step from one token to the next", "", pairs)


def _together(
    report: Report, what: str, bursts: dict[str, list[Burst]], others: Sequence[str]
) -> None:
    raw = bursts["raw"]
    report.add(f"{what}, raw, one after the other", "tokens/s", [burst.rate for burst in raw])
    for name in others:
        pairs = ratios([b.rate for b in bursts[name]], [b.rate for b in raw])
        report.add(f"{what}, {WORDS[name]}/raw", "", pairs)
    if len(raw[0].answers) < MOST:
        return
    report.add(f"{what}, raw: last first token", "ms", [1000 * burst.last_first for burst in raw])
    for name in others:
        pairs = ratios([b.last_first for b in bursts[name]], [b.last_first for b in raw])
        report.add(f"{what}, {WORDS[name]}/raw: last first token", "", pairs)


def _expect(report: Report, what: str, bursts: dict[str, list[Burst]], limits: Limits) -> None:
    def against(name: str, key: str) -> Iterable[float]:
        ours, theirs = bursts["ours"], bursts[name]
        return ratios([getattr(b, key) for b in ours], [getattr(b, key) for b in theirs])

    rate = summary(against("raw", "rate")).median
    report.expect(f"{what}, ours/raw", rate, limits.batch, at_least=True)
    if "server" in bursts:
        rate = report.add(f"{what}, ours/server", "", against("server", "rate")).median
        last = f"{what}, ours/server: last first token"
        first = report.add(last, "", against("server", "last_first")).median
        if limits.server is not None:
            report.expect(f"{what}, ours/server", rate, limits.server, at_least=True)
        if limits.last_first is not None:
            report.expect(last, first, limits.last_first)
