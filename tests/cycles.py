"""Records runs of the cycle collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def searches_for_cycles() -> Iterator[list[int]]:
    """Yield the generations collected within the block; automatic collection is off."""
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
