"""Whether there is room for one more model now: asked by whoever lists models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_magic.inference.pool import ModelPool


def fits(pool: ModelPool, needed_bytes: int) -> bool | None:
    """Say whether so many bytes fit beside what is in memory; None where nobody can say.

    Parameters
    ----------
    pool : ModelPool
    needed_bytes : int
        Of the model; 0 is unknown.
    """
    limit = pool.memory.limit
    if not limit or not needed_bytes:
        return None
    return sum(model.nbytes for model in pool) + needed_bytes <= limit
