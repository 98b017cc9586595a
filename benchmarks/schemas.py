"""Decoding under a schema, against free decoding: ``python -m benchmarks.schemas``.

Pairs in one process: free, with a schema, free, … The figures are medians of the ratios. The model
is the bundled one, and its answers go on after their end; without ``schema_prompt`` both have the
same prompt. The string of the schema is longer than the answer, so that each token has a choice.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, NamedTuple
from unittest import mock

LONG = {"type": "string", "minLength": 1_500, "maxLength": 1_500}
TEN = ", ".join(
    f"{name}: bool"
    for name in (
        *("is_red", "has_corners", "is_filled", "touches_the_border", "is_rotated"),
        *("overlaps_another", "has_a_label", "is_the_largest", "is_centered", "casts_a_shadow"),
    )
)


class Time(NamedTuple):
    """Seconds until all answers have ended, and processor seconds of the process."""

    wall: float
    processor: float

    def over(self, other: Time) -> Time:
        """Return the ratios to another time."""
        return Time(self.wall / other.wall, self.processor / other.processor)


def seconds(model: str, rows: int, tokens: int, schema: Any) -> Time:
    """Ask `rows` questions at once; return what it took."""
    import mlx_magic

    begun, used = time.perf_counter(), time.process_time()
    running = [
        mlx_magic.stream(
            f"Describe shape {row}.", model=model, max_tokens=tokens, temperature=0.0,
            schema=schema, schema_prompt="",
        )
        for row in range(rows)
    ]  # fmt: skip
    counts = [each.result.usage.completion_tokens for each in running]
    elapsed = Time(time.perf_counter() - begun, time.process_time() - used)
    if schema is None or schema is LONG:
        assert counts == [tokens] * rows, counts
    return elapsed


def against_free(model: str, rows: int, tokens: int, pairs: int) -> list[Time]:
    """Return the speeds under a schema as shares of the free speed."""
    from mlx_magic.backends.vision.forward import VisionForward

    with mock.patch.object(VisionForward, "is_stop_token", return_value=False):
        for schema in (None, LONG):
            seconds(model, rows, tokens, schema)
        return [
            seconds(model, rows, tokens, None).over(seconds(model, rows, tokens, LONG))
            for _ in range(pairs)
        ]


def without_choice(model: str, pairs: int) -> list[Time]:
    """Return how much quicker ten named fields are with tokens that are read in one call."""
    from mlx_magic.backends.batching.decode import DecodeBatch

    name = "_forced"
    joint = getattr(DecodeBatch, name)
    found = []
    for pair in range(pairs + 1):
        times = []
        ways: tuple[Any, ...] = (lambda self: [], joint)
        for way in ways:
            setattr(DecodeBatch, name, way)
            times.append(seconds(model, 1, 400, TEN))
        if pair:
            found.append(times[0].over(times[1]))
    return found


def shown(name: str, ratios: list[Time]) -> str:
    """Return a line: medians, and the smallest and the largest by the clock."""
    clock = [each.wall for each in ratios]
    used = statistics.median(each.processor for each in ratios)
    return (
        f"{name:<32} {statistics.median(clock):.2f} ({min(clock):.2f} to {max(clock):.2f}, "
        f"n={len(ratios)}), processor time {used:.2f}"
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="alias, folder or Hub repository id")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32])
    given = parser.parse_args()
    for rows in given.rows:
        ratios = against_free(given.model, rows, given.tokens, given.pairs)
        print(shown(f"schema / free, {rows} at once", ratios), flush=True)
    fields = without_choice(given.model, given.pairs)
    print(shown("ten fields, read in one call", fields), flush=True)


if __name__ == "__main__":
    main()
