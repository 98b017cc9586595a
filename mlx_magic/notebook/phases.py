"""What a person is told while they wait."""

from __future__ import annotations

from mlx_magic.inference.work import Progress, amount

_WORDS = {
    "queued": "waiting",
    "downloading": "downloading the model",
    "loading": "loading the model",
    "seeing": "looking at the picture",
    "reading": "reading the prompt",
    "writing": "writing",
    "done": "done",
}


def phase_line(progress: Progress, completion_tokens: int = 0) -> str:
    """Return one short line: the phase, and how far it has come where that is known.

    Parameters
    ----------
    progress : Progress
    completion_tokens : int
        Tokens written so far.
    """
    words = progress.note or _WORDS[progress.phase]
    if progress.phase == "writing":
        return f"{words} · {completion_tokens} tokens" if completion_tokens else words
    if progress.total <= 0:
        return words + " …"
    if progress.phase == "reading":
        return f"{words} · {progress.done:,} of {progress.total:,} tokens"
    return f"{words} · {amount(progress.done)} of {amount(progress.total)}"
