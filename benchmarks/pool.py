"""Several models in one process: switches between them, and loads while another one answers."""

from __future__ import annotations

import contextlib
import gc
import itertools
import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import Report, ratios
from benchmarks.workload import DrawnImages

MOST_SWITCH = 1.02
MOST_LOAD = 1.05
MOST_GAP = 250.0
MOST_LEFT = 0.01
CYCLES = 50
QUESTION = "Describe this picture in every detail."
ANSWER = 8
LONG_ANSWER = 100_000


def measure(
    model: Path, folder: Path, *, pairs: int, loads: int, gpu: bool, deadline: float
) -> Report:
    """Measure switches, loads, and the effect of a load on a running answer.

    Parameters
    ----------
    model, folder : Path
        The model, and an empty folder.
    pairs, loads : int
        Pairs with and without a switch; pairs of loads by raw mlx-vlm and ours, and loads during
        an answer.
    gpu : bool
        Whether the gap has a target, which exists for a GPU only.
    deadline : float
        In seconds of `time.monotonic`; no measurement begins after it.
    """
    from mlx_magic import default_session

    images = DrawnImages(folder / "images")
    names = [str(_copy(model, folder / name)) for name in ("one", "other")]
    held = default_session.current()
    for name in names:
        held.pool.submit_load(name).future.result()
    report = Report("pool", settings={"model": model.name})
    size = held.pool[names[0]].nbytes
    report.settings["bytes of a model"] = f"{size:,}"
    _switch(report, held, names, images, pairs, deadline)
    held.pool.unload(names[1])
    _load(report, held, names[1], loads, deadline)
    _beside(report, held, names, images, loads, deadline, gpu=gpu)
    _freed(report, held, names[1], images, deadline)
    return report


def _copy(model: Path, folder: Path) -> Path:
    """Make another folder with the same weights, which is another model for the pool."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for weights in model.glob("*.safetensors"):
        (folder / weights.name).symlink_to(weights.resolve())
    return folder


def _ask(held: Any, name: str, image: str, **more: Any) -> Any:
    from mlx_magic.engine.request import GenerationRequest, Sampling

    sampling = Sampling(more.pop("max_tokens", ANSWER), temperature=0.0)
    request = GenerationRequest(QUESTION, model=name, sampling=sampling)
    return held.start(request, images=[(None, image)], **more)


def _first(held: Any, name: str, image: str) -> float:
    found: float = _ask(held, name, image).future.result().timings.time_to_first_token
    return found


def _switch(
    report: Report, held: Any, names: list[str], images: DrawnImages, pairs: int, deadline: float
) -> None:
    """Ask the same model again, then the other one, each about a new image."""
    stays, switches = [], []
    for name in names * 2:
        _first(held, name, images.draw())
    for number in range(pairs):
        if number and time.monotonic() > deadline:
            break
        last, other = names if number % 2 else names[::-1]
        _first(held, last, images.draw())
        if number % 4 < 2:
            stays.append(_first(held, last, images.draw()))
            switches.append(_first(held, other, images.draw()))
        else:
            switches.append(_first(held, other, images.draw()))
            stays.append(_first(held, other, images.draw()))
    report.add("no switch: first token", "ms", [1000 * each for each in stays])
    share = report.add("switch/no switch: first token", "", ratios(switches, stays)).median
    report.expect("switch/no switch: first token", share, MOST_SWITCH)


def _load(report: Report, held: Any, name: str, loads: int, deadline: float) -> None:
    """Load with mlx-vlm and with ours, in turns, on the same thread."""

    def raw() -> float:
        import mlx.core as mx
        import mlx_vlm

        began = time.perf_counter()
        loaded: Any = mlx_vlm.load(name)
        seconds = time.perf_counter() - began
        del loaded
        gc.collect()
        mx.clear_cache()
        return seconds

    def ours() -> tuple[float, float]:
        with _timed_warm_up() as spent:
            began = time.perf_counter()
            held.pool.submit_load(name).future.result()
            seconds = time.perf_counter() - began
        held.pool.unload(name)
        return seconds, seconds - sum(spent)

    raws: list[float] = []
    both: list[tuple[float, float]] = []
    for number in range(loads + 1):
        if number > 1 and time.monotonic() > deadline:
            break
        for way in ("raw", "ours") if number % 2 else ("ours", "raw"):
            if way == "raw":
                raws.append(held.engine.call(raw).result())
            else:
                both.append(ours())
    # The first load of each has cold files and modules.
    raws, both = raws[1:], both[1:]
    whole, weights = zip(*both, strict=True)
    report.add("raw: load", "s", raws)
    share = report.add("ours/raw: load", "", ratios(weights, raws)).median
    report.add("ours/raw: load and warm-up, which raw has none of", "", ratios(whole, raws))
    report.expect("ours/raw: load", share, MOST_LOAD)


@contextlib.contextmanager
def _timed_warm_up() -> Iterator[list[float]]:
    """Record the seconds of each warm-up."""
    from mlx_magic.backends import warmup

    spent: list[float] = []
    real = warmup.warmed

    def timed(*args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        began = time.perf_counter()
        yield from real(*args, **kwargs)
        spent.append(time.perf_counter() - began)

    warmup.warmed = timed
    try:
        yield spent
    finally:
        warmup.warmed = real


def _beside(
    report: Report,
    held: Any,
    names: list[str],
    images: DrawnImages,
    loads: int,
    deadline: float,
    *,
    gpu: bool,
) -> None:
    """Load a model while another one answers, and find the longest time without a token."""
    gaps, quiet = [], []
    for number in range(loads):
        if number and time.monotonic() > deadline:
            break
        times: list[float] = []
        answer = _ask(
            held,
            names[0],
            images.draw(),
            max_tokens=LONG_ANSWER,
            sink=lambda chunk, at=times: (
                at.append(time.perf_counter()) if chunk.completion_tokens else None
            ),
        )
        while len(times) < 50:
            time.sleep(0.01)
        began = time.perf_counter()
        held.pool.submit_load(names[1]).future.result()
        ended = time.perf_counter()
        answer.cancel()
        answer.future.result()
        held.pool.unload(names[1])
        steps = [(b, 1000 * (b - a)) for a, b in itertools.pairwise(times)]
        gaps.append(max(gap for at, gap in steps if began <= at <= ended + 0.25))
        quiet.append(max(gap for at, gap in steps if at < began))
    report.add("longest time without a token, nothing loading", "ms", quiet)
    most = report.add("longest time without a token while another loads", "ms", gaps).highest
    if gpu:
        report.expect("longest time without a token while another loads, ms", most, MOST_GAP)


def _freed(report: Report, held: Any, name: str, images: DrawnImages, deadline: float) -> None:
    """Load, ask and unload repeatedly, and keep every result."""
    from mlx_magic.backends.device import platform

    def in_use() -> int:
        memory = held.engine.call(platform.memory).result()
        return int(memory.active + memory.cached)

    before, size, results, left = 0, 0, [], []
    for number in range(CYCLES + 1):
        if number > 1 and time.monotonic() > deadline:
            break
        held.pool.submit_load(name).future.result()
        size = held.pool[name].nbytes
        results.append(_ask(held, name, images.draw()).future.result())
        held.pool.unload(name)
        if number:
            left.append((in_use() - before) / size)
        else:
            # The first round also made permanent objects, such as compiled kernels.
            before = in_use()
    most = report.add("load, question, unload: not given back, of the weights", "", left).highest
    report.expect("load, question, unload: not given back, of the weights", most, MOST_LEFT)
