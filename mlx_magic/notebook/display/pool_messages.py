"""What a person reads of the pool: what was loaded, unloaded, pinned, and what room there is."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from mlx_magic.formatting import amount
from mlx_magic.model_pool.unload import Unload

if TYPE_CHECKING:
    from mlx_magic.model_pool.budget import Refusal
    from mlx_magic.model_pool.model_info import Load, ModelInfo
    from mlx_magic.model_pool.pool import ModelPool


def ended(work: Load | Unload) -> str:
    """Say what became of a load or an unload that has ended well."""
    return unloaded(work) if isinstance(work, Unload) else loaded(work)


def loaded(load: Load) -> str:
    """Say what became of a load."""
    info = load.future.result()
    if info is None:
        return f"Cancelled: {load.name} was not loaded."
    details = (info.kind, info.model_type, info.quantization, amount(info.nbytes))
    pinned = "pinned" if load.pin else ""
    return f"Loaded {load.name}: {', '.join(part for part in (*details, pinned) if part)}."


def unloaded(unload: Unload) -> str:
    """Say what became of an unload, and of those it has cancelled."""
    count = unload.cancelled
    cancelled = f" (cancelled {count} request{'s' * (count != 1)})" if count else ""
    freed = unload.future.result()
    if freed is not None:
        return f"Unloaded {unload.name}: {amount(freed)} freed{cancelled}."
    if unload.withdrawn:
        return f"{unload.name} stays: it was asked for again meanwhile{cancelled}."
    return f"Cancelled: {unload.name} was not unloaded{cancelled}."


def budget(gone: list[ModelInfo], refused: Refusal | None) -> list[str]:
    """Say what a new budget has made leave, and what it could not."""
    lines = [f"Unloaded {model.name} ({amount(model.nbytes)}): over the budget." for model in gone]
    return [*lines, *([refused.over_budget_message] if refused is not None else [])]


def room(pool: ModelPool) -> str:
    """Say how much of the budget is taken."""
    limit, setting = pool.budget_bytes, pool.budget
    share = f", {setting:.0%} of the memory" if isinstance(setting, float) else ""
    whole = "" if setting is not None else ", all there is"
    of = f" of {amount(limit)}" if limit else ""
    idle = "" if pool.idle_ttl is None else f"; idle ones leave after {pool.idle_ttl:g} s"
    return f"{amount(pool.taken)}{of} taken{share}{whole}{idle}"


def state(model: ModelInfo) -> str:
    """Say how a model stands: in use, pinned, idle."""
    users = f"in use by {model.users}" if model.users > 1 else "in use"
    parts = [
        users if model.users else "loaded",
        "pinned" if model.pinned else "",
        f"used {ago(model.idle)}" if model.idle >= 60 else "",
        f"with adapter {PurePath(model.adapter).name}" if model.adapter else "",
        "may run its code" if model.trusted else "",
    ]
    return ", ".join(part for part in parts if part)


def ago(seconds: float) -> str:
    """Return a time that has passed, in words: ``5 min ago``."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
