"""Questions for half an hour in one process: the growth of memory in the second half.

python -m benchmarks.soak --minutes 30
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import mlx_magic

MOST_GROWTH = 2.0
"""MB per 1,000 questions in the second half."""

MOST_LEFT = 1.2
"""Of the memory at the start, after everything that was kept is forgotten."""

WARM = 30.0
"""Seconds of questions before the memory "at the start" is read."""


def resident() -> float:
    """Return the resident memory of this process, in MB."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS")


def kept() -> float:
    """Return the size of the caches of images and prompts, in MB; it has a limit."""
    return mlx_magic.pool.reuse.nbytes / 2**20


class Asking:
    """Threads that ask different questions.

    Parameters
    ----------
    threads : int
    seed : int
    """

    def __init__(self, threads: int, seed: int) -> None:
        self.asked = 0
        self._lock = threading.Lock()
        self._gate = threading.Event()
        self._gate.set()
        self._end = threading.Event()
        self._busy = threading.Semaphore(threads)
        self._threads = threads
        for at in range(threads):
            threading.Thread(target=self._ask, args=(seed + at,), daemon=True).start()

    def paused(self) -> None:
        """Pause; no question is running when this returns."""
        self._gate.clear()
        for _ in range(self._threads):
            self._busy.acquire()

    def go_on(self) -> None:
        """Continue."""
        for _ in range(self._threads):
            self._busy.release()
        self._gate.set()

    def close(self) -> None:
        """Stop."""
        self._end.set()
        self._gate.set()

    def _ask(self, seed: int) -> None:
        draw = random.Random(seed)
        pixels = np.random.default_rng(seed)
        while not self._end.is_set():
            self._gate.wait()
            with self._busy:
                image: Any = None
                if draw.random() < 0.7:
                    side = draw.choice((64, 200, 333, 700))
                    image = pixels.integers(0, 255, (side, side, 3), dtype=np.uint8)
                words = " ".join(draw.choices(("red", "what", "circle", "two", "is"), k=20))
                stream = mlx_magic.stream(words, image, max_tokens=draw.choice((2, 8, 24)))
                for at, _ in enumerate(stream):
                    if at == 4 and draw.random() < 0.1:
                        stream.cancel()
            with self._lock:
                self.asked += 1


def measure(minutes: float, threads: int, seed: int) -> dict[str, Any]:
    """Ask for this time, and return the figures of the memory."""
    asking = Asking(threads, seed)
    time.sleep(WARM)
    began, start, first = time.monotonic(), resident(), asking.asked
    seen: list[tuple[int, float, float]] = [(0, start, kept())]
    while time.monotonic() - began < 60 * minutes:
        time.sleep(10)
        seen.append((asking.asked - first, resident(), kept()))
        print(*seen[-1], flush=True)
    half = seen[len(seen) // 2 :]
    counts, sizes, caches = (np.array(column) for column in zip(*half, strict=True))
    growth = 1000 * float(np.polyfit(counts, sizes, 1)[0])
    beside = 1000 * float(np.polyfit(counts, sizes - caches, 1)[0])
    asking.paused()
    ended = resident()
    mlx_magic.pool.forget()
    time.sleep(3)
    left = resident()
    ctypes.CDLL(None).malloc_trim(0)
    asking.close()
    return {
        "machine": f"{platform.machine()}, {platform.system()}, the bundled model",
        "minutes": minutes,
        "threads": threads,
        "questions": seen[-1][0],
        "MB at the start": round(start),
        "MB at the end": round(ended),
        "MB per 1,000 questions in the second half": round(growth, 2),
        "of that beside what is kept for reuse": round(beside, 2),
        "MB kept for reuse at the end": round(seen[-1][2]),
        "MB after forget()": round(left),
        "of the start": round(left / start, 3),
        "MB after malloc_trim, too": round(resident()),
        "met": growth < MOST_GROWTH and left < MOST_LEFT * start,
    }


def main() -> int:
    """Run the command; returns 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.minutes, options.threads, options.seed)
    text = json.dumps(found, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", "utf-8")
    return 0 if found["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
