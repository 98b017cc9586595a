"""Show large answers in a process of its own, whose time and memory are bounded.

Prints a line of JSON for each: its name, the form, seconds, and by how many bytes the process grew.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from mlx_magic.engine.result import VisionResult
from mlx_magic.notebook.display.live_text import Blocks
from mlx_magic.notebook.display.render import bundle
from mlx_magic.notebook.display.sanitize import to_html, to_markdown, to_plain

from .answers import ANSWERS, LARGE

MOST_MEMORY = 2_000_000_000


def _streamed(text: str) -> None:
    blocks = Blocks()
    for at in range(0, len(text), 1_000):
        blocks.feed(text[at : at + 1_000])
    for block, whole in blocks.finished:
        if whole:
            to_html(block)


FORMS = {
    "html": to_html,
    "markdown": to_markdown,
    "plain": to_plain,
    "bundle": lambda text: bundle(VisionResult(text, "demo", "stop")),
    "streamed": _streamed,
}


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Show all of them in each form."""
    if sys.platform != "darwin":  # which does not keep to it
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    texts = dict(LARGE)
    texts["all together"] = lambda: "\n\n".join(ANSWERS.values())
    for name, make in texts.items():
        text = make()
        for form, show in FORMS.items():
            before, began = _peak(), time.process_time()
            show(text)
            seconds = time.process_time() - began
            print(json.dumps([name, form, seconds, _peak() - before]), flush=True)


if __name__ == "__main__":
    main()
