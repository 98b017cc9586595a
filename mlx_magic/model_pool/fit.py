"""Whether a model fits now, with room made for it: asked by whoever lists models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_magic.model_pool.budget import Held, Refusal, plan

if TYPE_CHECKING:
    from mlx_magic.model_pool.pool import ModelPool


def fits(pool: ModelPool, needed_bytes: int) -> bool | None:
    """Say whether the budget lets so many bytes in now; None where nobody can say.

    As a load would: models that are idle and unpinned count as room, since they would leave.

    Parameters
    ----------
    pool : ModelPool
    needed_bytes : int
        Of the model; 0 is unknown.
    """
    budget = pool.budget_bytes
    if not budget or not needed_bytes:
        return None
    models = pool.models
    loading = max(pool.taken - sum(model.nbytes for model in models), 0)
    held = [Held(m.name, m.name, m.nbytes, -m.idle, m.users, m.pinned) for m in models]
    return not isinstance(plan(needed_bytes, budget, held, loading=loading), Refusal)
