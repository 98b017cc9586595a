"""A ``%%vision`` cell in a live kernel against raw ``mlx_vlm.stream_generate``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.figures import Report, ratios
from benchmarks.in_kernel import QUESTION
from benchmarks.live import LiveKernel

MOST_FIRST_TOKEN = 1.1


def draw_image(folder: Path) -> Path:
    """Write the image of the question: 640 by 480 pixels, a square on a gradient."""
    import numpy as np
    from PIL import Image

    pixels = np.zeros((480, 640, 3), dtype=np.uint8)
    pixels[..., 2] = np.linspace(60, 255, 640).astype(np.uint8)
    pixels[120:320, 200:400] = (200, 30, 30)
    path = folder / "image.png"
    Image.fromarray(pixels).save(path)
    return path


def measure(
    kernel: LiveKernel,
    model: Path,
    image: Path,
    *,
    pairs: int,
    max_tokens: int,
    least_rate: float,
    deadline: float,
    question: str = QUESTION,
) -> Report:
    """Measure in pairs: raw, ours, raw, ours, and so on.

    Parameters
    ----------
    kernel : LiveKernel
    model, image : Path
    pairs : int
    max_tokens : int
    least_rate : float
        Target of the decode ratio.
    deadline : float
        In seconds of `time.monotonic`; no pair begins after it.
    question : str
    """
    ours = (
        f"%%vision {str(image)!r} -m {str(model)!r} --max-tokens {max_tokens} "
        f"--temperature 0 -o answer\n{question}"
    )
    raw = f"theirs = raw.ask({question!r}, {str(image)!r}, {max_tokens})"
    kernel.do("clock = in_kernel.CellClock()")
    # Ours first, because it loads the BLAS library that both then use.
    kernel.do(ours)
    kernel.do(f"raw = in_kernel.Raw({str(model)!r}, clock)")
    dtype = str(kernel.read("raw.dtype"))
    for _ in range(2):
        kernel.do(raw)
        kernel.do(ours)
    samples: dict[str, list[dict[str, Any]]] = {"raw": [], "ours": []}
    for _ in range(pairs):
        if time.monotonic() > deadline and samples["ours"]:
            break
        # Otherwise the caches would save ours the image and the prompt after the first time.
        kernel.do("in_kernel.forget()")
        for name, code, value in (("raw", raw, "theirs"), ("ours", ours, "numbers")):
            wall = kernel.timed(code)
            if name == "ours":
                kernel.do("numbers = clock.ours(answer)")
            samples[name].append({**kernel.read(value), "wall": wall})
    return _report(samples, model, dtype, least_rate)


def _report(
    samples: dict[str, list[dict[str, Any]]], model: Path, dtype: str, least_rate: float
) -> Report:
    ours, raw = samples["ours"], samples["raw"]
    report = Report("cell", {"model": model.name, "dtype": dtype, "tokens": ours[0]["tokens"]})
    report.settings["prompt tokens"] = ours[0]["prompt_tokens"]
    # With greedy decoding and the same inputs, different texts mean different work.
    report.settings["same text"] = all(
        a["text"] == b["text"] for a, b in zip(ours, raw, strict=True)
    )

    def ratio(what: str, key: str) -> float:
        return report.add(what, "", ratios([r[key] for r in ours], [r[key] for r in raw])).median

    report.add("raw: decode", "tokens/s", [run["rate"] for run in raw])
    rate = ratio("ours/raw: decode", "rate")
    report.add("raw: first token", "ms", [1000 * run["ttft"] for run in raw])
    first = ratio("ours/raw: first token", "ttft")
    ratio("ours/raw: first token, from the cell's start", "ttft_of_cell")
    ratio("ours/raw: whole cell, as the client sees it", "wall")
    report.expect("decode ratio", rate, least_rate, at_least=True)
    report.expect("first token ratio", first, MOST_FIRST_TOKEN)
    for runs in samples.values():
        for run in runs:
            del run["text"]
    report.samples = dict(samples)
    return report
