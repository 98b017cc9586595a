"""Time from a click on Cancel to a stopped cell, per phase, compared with the longest step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Report, summary
from benchmarks.live import LiveKernel

GRACE = 0.1
"""Seconds beyond a step or a chunk that are promised."""

# Maximum delay of a click after its phase has begun, in seconds: clicks hit all parts of a step.
SPREAD = 0.04

# A word of one or a few tokens in most vocabularies.
PROMPT = "'red square ' * {count}"


@dataclass(frozen=True, slots=True)
class Stop:
    """One click.

    Attributes
    ----------
    seconds : float
        From the click to the cell's reply and idle message.
    free : float
        From the click until the inference thread can do other work.
    """

    seconds: float
    free: float


def measure(kernel: LiveKernel, model: Path, *, clicks: int, words: int, deadline: float) -> Report:
    """Click `clicks` times in each phase.

    Parameters
    ----------
    kernel : LiveKernel
    model : Path
        A model that never ends its answer.
    clicks : int
        Clicks per phase.
    words : int
        Length of the prompt in prefill, in pairs of words.
    deadline : float
        In seconds of `time.monotonic`; no click is prepared after it.
    """
    report = Report("cancel", {"model": model.name})
    kernel.do(f"%vision load {str(model)!r}")
    kernel.do(f"prompt = {PROMPT.format(count=words)}")
    paces = [kernel.read(f"in_kernel.paces({str(model)!r}, prompt, 64)") for _ in range(3)][1:]
    report.settings["prompt tokens"] = paces[0]["prompt_tokens"]
    chunks = [1000 * seconds for pace in paces for seconds in pace["chunks"]]
    steps = [1000 * seconds for pace in paces for seconds in pace["steps"]]
    report.add("a prefill chunk", "ms", chunks)
    report.add("a decode step", "ms", steps)
    ask = f"%%vision -m {str(model)!r} --temperature 0 -o answer"
    writing = _clicks(
        kernel, f"{ask} --max-tokens 4000\nWrite.", _shows_text, clicks, deadline, SPREAD
    )
    reading = _clicks(
        kernel, f"{ask} --max-tokens 4\n{{prompt}}", _shows("reading"), clicks, deadline, SPREAD
    )
    loading = _loads(kernel, model, clicks, deadline, report)
    _add(report, "writing", writing, max(steps), "the longest step", clicks)
    _add(report, "reading", reading, max(chunks), "the longest chunk", clicks)
    _add(report, "loading", loading, 0.0, "no step", clicks)
    return report


def _loads(
    kernel: LiveKernel, model: Path, clicks: int, deadline: float, report: Report
) -> list[Stop]:
    load = f"%vision load {str(model)!r}"
    whole = []
    for _ in range(2):
        kernel.do("%vision unload --all")
        whole.append(kernel.timed(load))
    report.add("a whole load", "ms", [1000 * seconds for seconds in whole])
    holds = []
    for _ in range(3):
        kernel.do("%vision unload --all")
        holds.append(1000 * kernel.read(f"in_kernel.longest_hold({str(model)!r})"))
    report.add("its longest stretch that lets no click in", "ms", holds)

    def unload() -> None:
        kernel.do("if len(mlx_magic.pool): get_ipython().run_line_magic('vision', 'unload --all')")

    kernel.do("import mlx_magic")
    return _clicks(kernel, load, lambda _: True, clicks, deadline, 0.7 * min(whole), unload)


def _clicks(
    kernel: LiveKernel,
    code: str,
    reached: Callable[[dict[str, Any]], bool],
    clicks: int,
    deadline: float,
    spread: float,
    before: Callable[[], None] | None = None,
) -> list[Stop]:
    """Run a cell and click, until `clicks` clicks arrived in time or twice as many were tried."""
    found: list[Stop] = []
    for turn in range(2 * clicks):
        if len(found) == clicks or (found and time.monotonic() > deadline):
            break
        # Otherwise the prefix cache would skip the prefill.
        before() if before is not None else kernel.do("in_kernel.forget()")
        kernel.wait_for_quiet()
        stop = _click(kernel, code, reached, spread * (turn % clicks) / clicks)
        if stop is not None:
            found.append(stop)
    return found


def _click(
    kernel: LiveKernel, code: str, reached: Callable[[dict[str, Any]], bool], delay: float
) -> Stop | None:
    """Return the outcome, or None if the cell ended before the click."""
    cell = kernel.start(code)
    kernel.wait_for(
        lambda: (
            cell.idle
            or (
                kernel.cancel_button() is not None
                and any(reached(state) for state in kernel.widgets.values())
            )
        ),
        "the phase",
    )
    kernel.pump(delay)
    button = kernel.cancel_button()
    if cell.idle or button is None:
        return None
    clicked = time.perf_counter()
    kernel.click(button)
    kernel.finish(cell, timeout=60)
    stopped = time.perf_counter()
    kernel.do("freed = in_kernel.until_free()")
    free = time.perf_counter()
    if "Cancelled" in cell.stdout:
        return Stop(stopped - clicked, free - clicked)
    if "vision load" in code or kernel.read("answer.finish_reason") != "cancelled":
        return None
    return Stop(stopped - clicked, free - clicked)


def _shows(word: str) -> Callable[[dict[str, Any]], bool]:
    return lambda state: word in str(state.get("value", ""))


def _shows_text(state: dict[str, Any]) -> bool:
    """Whether a widget shows a part of the answer: HTML without a phase."""
    value = str(state.get("value", ""))
    return state.get("_model_name") == "HTMLModel" and bool(value) and "status" not in value


def _add(
    report: Report, phase: str, stops: list[Stop], step: float, name: str, clicks: int
) -> None:
    seconds = [1000 * stop.seconds for stop in stops]
    report.add(f"{phase}: click to stopped", "ms", seconds)
    report.add(f"{phase}: click to a free thread", "ms", [1000 * stop.free for stop in stops])
    if len(stops) == clicks:
        # With fewer clicks the slowest one means little.
        report.expect(
            f"{phase}: slowest click, ms, to {name} and {1000 * GRACE:.0f} ms",
            summary(seconds).highest,
            step + 1000 * GRACE,
        )
    report.samples[phase] = [[stop.seconds, stop.free] for stop in stops]
