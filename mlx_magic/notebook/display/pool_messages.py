"""Messages about the pool: loads, unloads, states of models, memory."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from mlx_magic.formatting import amount
from mlx_magic.model_pool.unload import Unload

if TYPE_CHECKING:
    from mlx_magic.model_pool.budget import Refusal
    from mlx_magic.model_pool.model_info import Load, ModelInfo
    from mlx_magic.model_pool.pool import ModelPool


def ended(task: Load | Unload) -> str:
    """Return the outcome of a load or an unload that did not fail."""
    return unloaded(task) if isinstance(task, Unload) else loaded(task)


def loaded(load: Load) -> str:
    """Return the outcome of a load."""
    info = load.future.result()
    if info is None:
        return f"Cancelled: {load.name} was not loaded."
    details = (info.kind, info.model_type, info.quantization, amount(info.nbytes))
    pinned = "pinned" if load.pin else ""
    return f"Loaded {load.name}: {', '.join(part for part in (*details, pinned) if part)}."


def unloaded(unload: Unload) -> str:
    """Return the outcome of an unload, with the number of cancelled requests."""
    count = unload.cancelled
    cancelled = f" (cancelled {count} request{'s' * (count != 1)})" if count else ""
    freed = unload.future.result()
    if freed is not None:
        return f"Unloaded {unload.name}: {amount(freed)} freed{cancelled}."
    if unload.withdrawn:
        return f"{unload.name} was not unloaded: a new request needs it{cancelled}."
    return f"Cancelled: {unload.name} was not unloaded{cancelled}."


def budget(evicted: list[ModelInfo], refused: Refusal | None) -> list[str]:
    """Return what a new budget evicted, and what it could not evict."""
    lines = [
        f"Unloaded {model.name} ({amount(model.nbytes)}): over the memory budget."
        for model in evicted
    ]
    return [*lines, *([refused.over_budget_message] if refused is not None else [])]


def memory_use(pool: ModelPool) -> str:
    """Return how much of the memory budget is used."""
    limit, setting = pool.budget_bytes, pool.budget
    share = f" ({setting:.0%} of the memory)" if isinstance(setting, float) else ""
    unlimited = "" if setting is not None else " (no limit set)"
    of = f" of {amount(limit)}" if limit else ""
    idle = "" if pool.idle_ttl is None else f"; idle models are unloaded after {pool.idle_ttl:g} s"
    return f"{amount(pool.taken)}{of} used{share}{unlimited}{idle}"


def state(model: ModelInfo) -> str:
    """Return the state of a model: in use, pinned, idle."""
    users = f"in use by {model.users}" if model.users > 1 else "in use"
    parts = [
        users if model.users else "loaded",
        "pinned" if model.pinned else "",
        f"used {ago(model.idle)}" if model.idle >= 60 else "",
        f"with adapter {PurePath(model.adapter).name}" if model.adapter else "",
        "remote code allowed" if model.trusted else "",
    ]
    return ", ".join(part for part in parts if part)


def ago(seconds: float) -> str:
    """Return a time span in words: ``5 min ago``."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
