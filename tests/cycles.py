"""Whether Python looked for cycles."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def searches_for_cycles() -> Iterator[list[int]]:
    """Give the generations that are searched within the block; none by itself."""
    searches: list[int] = []

    def noted(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            searches.append(info["generation"])

    gc.disable()
    gc.callbacks.append(noted)
    try:
        yield searches
    finally:
        gc.callbacks.remove(noted)
        gc.enable()
