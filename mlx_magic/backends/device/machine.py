"""What MLX runs on here, in words for a person."""

from __future__ import annotations

from mlx_magic.backends.device import openblas, platform
from mlx_magic.engine.task import amount


def facts() -> list[tuple[str, str]]:
    """Return pairs of a word and its value: device, memory, BLAS, and trouble with compiling."""
    memory, blas = platform.memory(), platform.blas()
    limit = f" of {amount(memory.limit)}" if memory.limit else ""
    if blas is None:
        blas = openblas.Blas(None, f"decided at the first load; {openblas.SWITCH}=0 turns it off")
    found = platform.compiles()
    compiled = [("compiled code", found.words)] if found is not None and found.problem else []
    return [
        ("device", platform.describe()),
        ("memory", f"{amount(memory.active)} in use, {amount(memory.cached)} kept{limit}"),
        ("OpenBLAS", blas.reason + (f" ({blas.loaded})" if blas.loaded else "")),
        *compiled,
    ]
