"""The status line of a running task."""

from __future__ import annotations

from mlx_magic.engine.download_rate import duration, seconds_left
from mlx_magic.engine.task import Progress
from mlx_magic.formatting import amount

_WORDS = {
    "queued": "waiting",
    "downloading": "downloading the model",
    "loading": "loading the model",
    "vision": "looking at the picture",
    "prefill": "reading the prompt",
    "decode": "writing",
    "done": "done",
}


def phase_line(progress: Progress) -> str:
    """Return one short line: the phase, and its progress where known."""
    words = progress.note or _WORDS[progress.phase]
    if progress.total <= 0 or progress.phase == "vision":
        return words + " …"
    if progress.phase == "prefill":
        return f"{words} · {progress.done:,} of {progress.total:,} tokens"
    line = f"{words} · {amount(progress.done)} of {amount(progress.total)}"
    left = seconds_left(progress.done, progress.total, progress.rate)
    if left is None or progress.done >= progress.total:
        return line
    return f"{line} · {amount(int(progress.rate))}/s · {duration(left)} left"
