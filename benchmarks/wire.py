"""Bytes that a cell sends to the front end, by the length of its answer."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.figures import Report
from benchmarks.live import Arrival, LiveKernel

MOST_BYTES = 250_000
SHORT, LONG = 1_000, 4_000
MOST_GROWTH = 4.2
"""Times the bytes for four times the tokens: linear, and what noise there is."""

# Views are closed half a second after their cell.
AFTERWARDS = 1.2

WORDS = (
    *("a", "the", "picture", "shows", "of", "and", "red", "square", "circle", "on", "in", "left"),
    *("right", "with", "two", "small", "large", "there", "is", "behind", "blue", "green", "it"),
    *("looks", "like", "an", "old", "wooden", "table", "near", "window", "light", "shadow"),
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Traffic of one cell.

    Attributes
    ----------
    tokens, bytes, messages : int
    updates_a_second : float
        Updates of the live text.
    seconds : float
        From the request to the idle message.
    """

    tokens: int
    bytes: int
    messages: int
    updates_a_second: float
    seconds: float


def write_words(path: Path, count: int, *, paragraphs: bool, seed: int = 0) -> None:
    """Write an answer as JSON, in pieces of one word.

    Parameters
    ----------
    path : Path
    count : int
    paragraphs : bool
        Whether there are blank lines; otherwise it is one block, the worst case.
    seed : int
    """
    choice = random.Random(seed)
    words = [choice.choice(WORDS) + " " for _ in range(count)]
    if paragraphs:
        words[79::80] = [f"{word.strip()}.\n\n" for word in words[79::80]]
    path.write_text(json.dumps(words), encoding="utf-8")


def is_text_update(arrival: Arrival) -> bool:
    """Whether a message changes what a widget shows."""
    content = arrival.message["content"]
    return arrival.message["msg_type"] == "comm_msg" and "value" in content.get("data", {}).get(
        "state", {}
    )


def measure_model(kernel: LiveKernel, model: Path) -> Report:
    """Measure with a real model, through the whole pipeline.

    Parameters
    ----------
    kernel : LiveKernel
    model : Path
        A model that never ends its answer.
    """
    report = Report("wire", {"model": model.name})
    # Sampled, because greedy decoding with random weights repeats one word.
    ask = f"%%vision -m {str(model)!r} --temperature 1 --seed 7 -o answer"
    kernel.do(f"{ask} --max-tokens 8\nWarm up.")
    short, long = (_traffic(kernel, f"{ask} --max-tokens {n}\nWrite.", n) for n in (SHORT, LONG))
    _add(report, "model", short)
    _add(report, "model", long)
    growth = long.bytes / short.bytes
    report.expect("model: bytes for 1,000 tokens", short.bytes, MOST_BYTES)
    report.expect("model: 4,000 over 1,000 tokens", growth, MOST_GROWTH)
    return report


def measure_paced(
    kernel: LiveKernel, model: Path, folder: Path, rates: list[float], report: Report
) -> None:
    """Add scripted answers at steady rates, as of models of different speed.

    Parameters
    ----------
    kernel : LiveKernel
        Its session is replaced by scripted ones.
    model : Path
        A valid model folder; its weights are not used.
    folder : Path
        Folder for the scripts.
    rates : list of float
        Tokens per second; 0 is unpaced. The long answer is measured only at the last rate.
    report : Report
        The rows are added to it.
    """
    path = folder / "words.json"
    runs = [*((rate, SHORT) for rate in rates), (rates[-1], LONG)]
    for paragraphs in (True, False):
        shape = "paragraphs" if paragraphs else "one block"
        found = {}
        for rate, count in runs:
            write_words(path, count, paragraphs=paragraphs)
            kernel.do(f"script = in_kernel.script({str(path)!r}, {rate})")
            ask = f"%%vision -m {str(model)!r} --max-tokens 5000 -o answer\nWrite."
            found[rate, count] = _traffic(kernel, ask, count)
            _add(report, f"{shape}, {f'{rate:g}/s' if rate else 'unpaced'}", found[rate, count])
        most = max(held.bytes for (_, count), held in found.items() if count == SHORT)
        growth = found[rates[-1], LONG].bytes / found[rates[-1], SHORT].bytes
        report.expect(f"{shape}: most bytes for 1,000 tokens", most, MOST_BYTES)
        report.expect(f"{shape}: 4,000 over 1,000 tokens", growth, MOST_GROWTH)


def _traffic(kernel: LiveKernel, code: str, tokens: int) -> Traffic:
    kernel.wait_for_quiet()
    before = len(kernel.arrivals)
    seconds = kernel.timed(code)
    kernel.pump(AFTERWARDS)
    arrivals = kernel.arrivals[before:]
    written = kernel.read("answer.usage.completion_tokens")
    if written != tokens:
        raise RuntimeError(f"{written} tokens were written, not {tokens}.")
    times = [arrival.at for arrival in arrivals if is_text_update(arrival)]
    lasted = times[-1] - times[0] if len(times) > 1 else 0.0
    return Traffic(
        tokens=tokens,
        bytes=sum(arrival.size for arrival in arrivals),
        messages=len(arrivals),
        updates_a_second=(len(times) - 1) / lasted if lasted else 0.0,
        seconds=seconds,
    )


def _add(report: Report, what: str, traffic: Traffic) -> None:
    name = f"{what}, {traffic.tokens:,} tokens"
    report.add(name, "bytes", [traffic.bytes])
    report.add(f"{name}: updates a second", "", [traffic.updates_a_second])
    report.samples[name] = asdict(traffic)
