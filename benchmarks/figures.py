"""Summaries and targets of a measurement, printed and saved."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of repeated runs.

    Attributes
    ----------
    median, lowest, highest : float
    n : int
        Number of runs.
    """

    median: float
    lowest: float
    highest: float
    n: int


def summary(values: Iterable[float]) -> Summary:
    """Summarize repeated runs.

    Raises
    ------
    ValueError
        There was no run.
    """
    held = list(values)
    if not held:
        raise ValueError("Nothing was measured: no run came to its end.")
    return Summary(statistics.median(held), min(held), max(held), len(held))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Divide the paired runs; slow moments of the machine affect both of a pair."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval that contains the median with at least 95 % confidence (sign test)."""
    held = sorted(values)
    count, below, tail = len(held), 0, 0.0
    while below < count // 2:
        tail += math.comb(count, below) / 2**count
        if tail > 0.025:
            break
        below += 1
    at = max(below - 1, 0)
    return held[at], held[count - 1 - at]


def bootstrapped(values: Sequence[float], draws: int = 4000) -> tuple[float, float]:
    """Return the 95 % interval of the median, from samples drawn with replacement."""
    chance = random.Random(0)
    found = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return found[draws // 40], found[draws - 1 - draws // 40]


@dataclass(frozen=True, slots=True)
class Row:
    """A measured quantity.

    Attributes
    ----------
    what : str
    unit : str
        ``""`` for a ratio.
    summary : Summary
    """

    what: str
    unit: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class Target:
    """A target, and the measured value.

    Attributes
    ----------
    what : str
    measured, limit : float
    at_least : bool
        Whether `limit` is a minimum; otherwise it is a maximum.
    """

    what: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the target was met."""
        if self.at_least:
            return self.measured >= self.limit
        return self.measured <= self.limit


@dataclass(slots=True)
class Report:
    """The outcome of one benchmark.

    Attributes
    ----------
    name : str
    settings : dict
        Settings of the run, for display.
    rows : list of Row
    targets : list of Target
    samples : dict
        Values of every run.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, unit: str, values: Iterable[float]) -> Summary:
        """Add a row; returns its summary."""
        row = Row(what, unit, summary(values))
        self.rows.append(row)
        return row.summary

    def expect(self, what: str, measured: float, limit: float, *, at_least: bool = False) -> None:
        """Compare a value with a target."""
        self.targets.append(Target(what, measured, limit, at_least))

    def table(self) -> str:
        """Return rows and targets as lines of text."""
        names = [row.what for row in self.rows] + [target.what for target in self.targets]
        width = max(map(len, names), default=0)
        lines = [f"{self.name}  {_words(self.settings)}"]
        for row in self.rows:
            held = row.summary
            low, high = amount(held.lowest), amount(held.highest)
            middle = f"{amount(held.median)} {row.unit}".strip()
            lines.append(f"  {row.what:<{width}}  {middle:>14}   {low} to {high}, n={held.n}")
        for target in self.targets:
            sign, verdict = ">=" if target.at_least else "<=", "met" if target.met else "MISSED"
            wanted = f"{amount(target.measured)} {sign} {amount(target.limit)}"
            lines.append(f"  {target.what:<{width}}  {wanted:>14}   {verdict}")
        return "\n".join(lines)

    def save(self, folder: Path, machine: Mapping[str, Any], label: str) -> Path:
        """Write everything as JSON; returns the file's path.

        Parameters
        ----------
        folder : Path
        machine : mapping
            The machine and its software, in words.
        label : str
            The machine, as part of the file name.
        """
        folder.mkdir(parents=True, exist_ok=True)
        held = {
            "name": self.name,
            "machine": dict(machine),
            "settings": self.settings,
            "measured": [asdict(row) for row in self.rows],
            "targets": [{**asdict(target), "met": target.met} for target in self.targets],
            "samples": self.samples,
        }
        path = folder / f"{self.name}-{label}.json"
        path.write_text(json.dumps(rounded(held), indent=1) + "\n", encoding="utf-8")
        return path


def rounded(value: Any) -> Any:
    """Return the value with floats rounded to five digits; more digits are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(held) for held in value]
    return value


def amount(value: float) -> str:
    """Return a number with three or four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
