"""Maps: ``python -m benchmarks.maps``. Ratios of pairs that were measured one after the other.

Each part can be run alone: ``speed``, ``questions``, ``first``, ``journal``, ``memory``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.ways import OneBatch, Raw
from benchmarks.workload import Ask
from mlx_magic.backends.device import platform

T = TypeVar("T")

PROMPT = "What shape is it?"
QUESTIONS = {"shape": PROMPT, "color": "Which color is it?", "count": "How many shapes are there?"}
TOKENS = 12
BATCHES = 32
"""Questions that one BatchGenerator gets at once: as many as mlx-magic decodes together."""


def drawn(folder: Path, count: int, side: int = 64, *, seed: int = 1) -> list[Path]:
    """Draw images, each of another shape and color."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    paths = []
    for at in range(count):
        image = Image.new("RGB", (side, side), "white")
        left, top = chance.randrange(side // 3), chance.randrange(side // 3)
        box = (left, top, left + side // 2 + at % 5, top + side // 2)
        color = tuple(chance.randrange(200) for _ in range(3))
        draw = ImageDraw.Draw(image)
        (draw.ellipse if at % 2 else draw.rectangle)(box, fill=color)
        paths.append(folder / f"{at}.png")
        image.save(paths[-1])
        os.utime(paths[-1], (1e9, 1e9))
    return paths


def timed(work: Callable[..., T], *args: Any, **options: Any) -> tuple[float, T]:
    """Return the seconds that a call takes, and its value."""
    began = time.perf_counter()
    value = work(*args, **options)
    return time.perf_counter() - began, value


def resident() -> int:
    """Return the bytes of this process in memory; on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def speed(folder: Path, count: int, pairs: int) -> dict[str, Any]:
    """Compare a map with a loop over `stream_generate` and with BatchGenerator."""
    import mlx_magic
    from mlx_magic.demo import folder as demo

    warm = drawn(folder / "warm", BATCHES, seed=99)
    raw, batch = Raw(str(demo())), OneBatch(str(demo()))
    options: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "journal": False}
    mlx_magic.map(PROMPT, warm, **options)
    first = [Ask(PROMPT, str(path)) for path in warm[:2]]
    raw.answer(first, TOKENS)
    batch.answer(first, TOKENS)
    loops, batches, same = [], [], 0
    for pair in range(pairs):
        # Fresh images: those of an earlier pair are in the caches of the model.
        paths = drawn(folder / f"images{pair}", count, seed=pair)
        asks = [Ask(PROMPT, str(path)) for path in paths]
        ours, rows = timed(mlx_magic.map, PROMPT, paths, **options)
        loop, looped = timed(raw.answer, asks, TOKENS)
        one, _ = timed(batch.answer, asks, TOKENS)
        loops.append(loop / ours)
        batches.append(one / ours)
        texts = ["" if row.result is None else row.result.text.strip() for row in rows]
        same += sum(a == b for a, b in zip(texts, looped.texts, strict=True))
    return {
        "images": count,
        "times the loop": loops,
        "times one BatchGenerator": batches,
        "same answers as the loop": f"{same} of {count * pairs}",
    }


def questions(folder: Path, count: int, pairs: int) -> dict[str, Any]:
    """Compare three questions an image with one; fresh images for each."""
    import mlx_magic

    options: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "journal": False}
    options["max_pixels"] = 10**7
    mlx_magic.map(QUESTIONS, drawn(folder / "warm", 4, 512, seed=99), **options)
    found = []
    for pair in range(pairs):
        one = drawn(folder / f"one{pair}", count, 512, seed=2 * pair)
        three = drawn(folder / f"three{pair}", count, 512, seed=2 * pair + 1)
        single, _ = timed(mlx_magic.map, PROMPT, one, **options)
        triple, _ = timed(mlx_magic.map, QUESTIONS, three, **options)
        found.append(triple / single)
    return {"images": count, "three questions, times one": found}


def first(folder: Path, count: int, pairs: int) -> dict[str, Any]:
    """Compare the first token of a question beside a map with that of an idle engine."""
    import mlx_magic

    def ask(at: int) -> float:
        [path] = drawn(folder / f"ask{at}", 1, seed=1000 + at)
        result = mlx_magic.ask(PROMPT, path, temperature=0, max_tokens=2)
        return float(result.timings.time_to_first_token or 0.0)

    paths = drawn(folder / "images", count)
    options: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "journal": False}
    mlx_magic.map(PROMPT, paths[:BATCHES], **options)
    idle, busy = [], []
    for pair in range(pairs):
        idle.append(ask(2 * pair))
        chance = random.Random(pair)
        running = mlx_magic.map(PROMPT, paths, wait=False, **options)
        time.sleep(0.5 + chance.random())
        if running.done:
            raise RuntimeError("The map ended before the question: use more images.")
        busy.append(ask(2 * pair + 1))
        running.cancel()
        running.wait()
    return {
        "first token, idle": idle,
        "first token, beside a map": busy,
        "ratio of medians": statistics.median(busy) / statistics.median(idle),
    }


def journal(folder: Path, rows: int) -> dict[str, Any]:
    """Measure what a row costs, and how soon a map of so many stored rows begins to ask."""
    from mlx_magic import default_session, map
    from mlx_magic.data.journal.store import Journal
    from mlx_magic.testing import ScriptedBackend, scripted_session

    paths = drawn(folder / "images", rows, 16)
    script = ScriptedBackend("A dot.")
    default_session.replace_current(scripted_session(backend=script))
    file = folder / "journal.sqlite"
    model = str(folder / "model")
    from tests import checkpoints

    checkpoints.good(folder / "model")
    map(PROMPT, paths, model, journal=file)
    new = drawn(folder / "new", 1, 24)
    asked = len(script.requests)
    began = time.perf_counter()
    running = map(PROMPT, [*paths, *new], model, journal=file, wait=False)
    while len(script.requests) == asked:
        time.sleep(0.001)
    resumed = time.perf_counter() - began
    running.wait()
    held = Journal(folder / "cost.sqlite")
    result = '{"text":"A dot."}' + " " * 800
    costs = [
        timed(held.add, [(at.to_bytes(32, "big"), 1, "a.png", "", result)])[0]
        for at in range(1_000)
    ]
    held.close()
    return {
        "rows": rows,
        "seconds until a resumed map asks": resumed,
        "milliseconds a row, median": 1e3 * statistics.median(costs),
        "milliseconds a row, 99th of 100": 1e3 * statistics.quantiles(costs, n=100)[98],
        "thread": "the map's own, not the engine's",
    }


def memory(folder: Path, rows: int) -> dict[str, Any]:
    """Measure the process's memory at a tenth of the rows and at the end; some of 12 megapixels."""
    from PIL import Image

    from mlx_magic import MapProgress, default_session, map
    from mlx_magic.testing import ScriptedBackend, scripted_session
    from tests import checkpoints

    paths = drawn(folder / "images", rows, 32)
    large = folder / "large.jpg"
    Image.effect_noise((4000, 3000), 40).convert("RGB").save(large, quality=60)
    mixed = [large if at % 50 == 7 else path for at, path in enumerate(paths)]
    script = ScriptedBackend("A dot.")
    default_session.replace_current(scripted_session(backend=script))
    script.requests = _Dropped()
    checkpoints.good(folder / "model")
    seen: dict[int, int] = {}

    def progress(state: MapProgress) -> None:
        for mark in (rows // 10, rows // 2, rows):
            if state.done >= mark and mark not in seen:
                seen[mark] = resident()

    map(PROMPT, mixed, str(folder / "model"), on_progress=progress, journal=folder / "j.sqlite")
    return {
        "rows": rows,
        "bytes by row": seen,
        "last, times the first": seen[rows] / seen[rows // 10],
    }


class _Dropped(list[Any]):
    """A list that keeps nothing: a scripted model would keep every image."""

    def append(self, item: object) -> None:
        """Drop the item."""


def main() -> None:
    """Measure, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    platform.prepare()
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "speed": lambda folder: speed(folder, given.count, given.pairs),
        "questions": lambda folder: questions(folder, max(given.count // 25, 4), given.pairs),
        "first": lambda folder: first(folder, given.count, given.pairs),
        "journal": lambda folder: journal(folder, 10 * given.count),
        "memory": lambda folder: memory(folder, 10 * given.count),
    }
    for name in given.parts or parts:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({name: parts[name](Path(folder))}, indent=1), flush=True)


if __name__ == "__main__":
    main()
