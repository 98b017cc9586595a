"""The memory budget: which models to evict for a load, or why it cannot fit. Pure functions."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from mlx_magic.argument_checks import plain, short_repr
from mlx_magic.errors import MemoryBudgetError, RequestError
from mlx_magic.formatting import amount

Setting = int | float | str | None
"""A budget setting: bytes, a share of the memory, ``"8 GB"``, or None for all memory."""

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
# ASCII, since IGNORECASE would match a dotless i. Pasted text may have non-breaking spaces.
_SIZE = re.compile(
    r"\s*(\d+(?:\.\d+)?|\.\d+)[\s\u00a0\u202f]*((?:[kmgt]i?)?b|%)?\s*",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """A model in memory, as input of the budget computation.

    Attributes
    ----------
    key : hashable
        Identity of the model.
    name : str
    nbytes : int
    last_used : float
        Seconds of any clock.
    users : int
        Number of holders; a model in use cannot be evicted.
    pinned : bool
        Whether it stays until it is unloaded by hand.
    """

    key: Hashable
    name: str
    nbytes: int
    last_used: float = 0.0
    users: int = 0
    pinned: bool = False

    @property
    def can_leave(self) -> bool:
        """Whether the model may be evicted."""
        return not self.users and not self.pinned


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a load does not fit.

    Attributes
    ----------
    needed, budget, loading : int
        Bytes of the load, of the budget, and of other loads in flight.
    staying : tuple of ModelUsage
        The models that are in use or pinned.
    """

    needed: int
    budget: int
    loading: int
    staying: tuple[ModelUsage, ...]

    @property
    def free(self) -> int:
        """Bytes that are available after evicting all models that can be evicted."""
        taken = self.loading + sum(model.nbytes for model in self.staying)
        return max(self.budget - taken, 0)

    def error(self, name: str) -> MemoryBudgetError:
        """Return the error for the load of the model of this name."""
        needed, budget = amount(self.needed), amount(self.budget)
        if self.needed > self.budget:
            message = (
                f"{name} needs {needed}, more than the {budget} that models may take: "
                "choose a smaller or quantized one, or raise the budget "
                "(%config VisionMagics.memory_budget)."
            )
        else:
            message = (
                f"{name} needs {needed}, but of the {budget} that models may take only "
                f"{amount(self.free)} can be had: {self.words}. {self._remedy()}."
            )
        return MemoryBudgetError(
            message,
            model=name,
            needed_bytes=self.needed,
            limit_bytes=self.budget,
            could_unload=[model.name for model in self.staying],
        )

    @property
    def words(self) -> str:
        """The models that stay, and why, as text."""
        parts = [
            f"{model.name} ({amount(model.nbytes)}) is {'in use' if model.users else 'pinned'}"
            for model in self.staying
        ]
        if self.loading:
            parts.append(f"{amount(self.loading)} are being loaded")
        return ", ".join(parts)

    @property
    def over_budget_message(self) -> str:
        """The text of the warning about models over the budget that cannot be evicted."""
        over = sum(model.nbytes for model in self.staying) + self.loading - self.budget
        pinned = all(not model.users for model in self.staying) and not self.loading
        after = "Unload it, or unpin it." if pinned else "What is in use leaves when it is let go."
        return (
            f"Models take {amount(over)} more than the budget of {amount(self.budget)}: "
            f"{self.words}. {after}"
        )

    def _remedy(self) -> str:
        remedies = []
        if pinned := [model.name for model in self.staying if not model.users]:
            remedies.append(f"unload what is pinned (%vision unload {pinned[0]})")
        if used := [model.name for model in self.staying if model.users]:
            remedies.append(
                f"wait for {used[0]}, or end its use (%vision unload {used[0]} --force)"
            )
        if self.loading and not used:
            remedies.append("wait for the load")
        remedies.append("choose a smaller or quantized model")
        words = ", ".join(remedies[:-1]) + ", or " + remedies[-1]
        return words[0].upper() + words[1:]


def choose_evictions(
    needed: int, budget: int, models: Iterable[ModelUsage], *, loading: int = 0
) -> tuple[ModelUsage, ...] | Refusal:
    """Choose the models to evict so that a load fits.

    The least recently used are evicted first, and no more than needed. Models that are in use
    or pinned are not evicted.

    Parameters
    ----------
    needed, budget : int
        Bytes of the load, and of the budget (0 is no limit).
    models : iterable of ModelUsage
        The models in memory.
    loading : int
        Bytes of other loads in flight.

    Returns
    -------
    tuple of ModelUsage or Refusal
    """
    models = list(models)
    over = needed + loading + sum(model.nbytes for model in models) - budget
    if not budget or over <= 0:
        return ()
    leaving: list[ModelUsage] = []
    for model in sorted((m for m in models if m.can_leave), key=lambda m: m.last_used):
        if over <= 0:
            break
        leaving.append(model)
        over -= model.nbytes
    if over > 0:
        staying = tuple(model for model in models if not model.can_leave)
        return Refusal(needed, budget, loading, staying)
    # A small model chosen early may stay if a larger one had to be chosen after it.
    for model in list(leaving):
        if over + model.nbytes <= 0:
            leaving.remove(model)
            over += model.nbytes
    return tuple(leaving)


def evictions_for_budget(
    budget: int, models: Sequence[ModelUsage], *, loading: int = 0
) -> tuple[tuple[ModelUsage, ...], Refusal | None]:
    """Choose the models to evict after the budget was lowered.

    Returns
    -------
    tuple of ModelUsage, and Refusal or None
        The models to evict, and the refusal if the rest still exceeds the budget.
    """
    planned = choose_evictions(0, budget, models, loading=loading)
    if not isinstance(planned, Refusal):
        return planned, None
    return tuple(model for model in models if model.can_leave), planned


def check_setting(setting: object) -> Setting:
    """Return a budget setting, if it is valid; NumPy's numbers as plain ones.

    Raises
    ------
    RequestError
        When it is not one of: None, bytes (an int above 0), a share of the memory (a float
        above 0, up to 1), a text such as ``"8 GB"`` or ``"60%"``.
    """
    setting = plain(setting)
    match setting:
        case None:
            return None
        case bool():
            pass
        case int() if setting > 0:
            return setting
        case float() if 0 < setting <= 1:
            return setting
        case str() if _parse_size(setting):
            return setting
    raise RequestError(
        f"{short_repr(setting)} is not a memory budget: give bytes ('8 GB', 8_000_000_000), a "
        "share of the memory (0.6, '60%'), or None for all of it.",
        option="memory_budget",
    )


def check_ttl(seconds: object) -> float | None:
    """Return an idle time-to-live, if it is valid: seconds above 0, or None.

    Raises
    ------
    RequestError
    """
    if seconds is None:
        return None
    seconds = plain(seconds)
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds > 0:
        with contextlib.suppress(OverflowError):
            return float(seconds)
    raise RequestError(
        f"{short_repr(seconds)} is not a time: give seconds above 0, or None.", option="idle_ttl"
    )


def budget_bytes(setting: Setting, total: int) -> int:
    """Return a budget setting in bytes; 0 is no limit.

    Parameters
    ----------
    setting : int, float, str or None
        A setting that `check_setting` has accepted.
    total : int
        Bytes that the device lets models use. 0 is unknown; a share is then no limit.
    """
    if isinstance(setting, str):
        setting = _parse_size(setting)
    if setting is None:
        return total
    if isinstance(setting, float):
        return int(setting * total)
    return min(setting, total) if total else setting


def _parse_size(text: str) -> int | float | None:
    """Parse ``"8 GB"`` as bytes and ``"60%"`` as a share; return None for other texts."""
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    number, unit = float(match[1]), (match[2] or "").lower()
    if unit == "%":
        return number / 100 if 0 < number <= 100 else None
    if not unit and 0 < number <= 1 and "." in match[1]:
        return number
    size = number * _UNITS[unit]
    return (int(size) or None) if math.isfinite(size) else None
