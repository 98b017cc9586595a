"""The models of the panel's list: in memory, on disk, bundled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import DEMO
from mlx_magic.engine.task import Progress, Task
from mlx_magic.formatting import amount, shown
from mlx_magic.model_pool.model_info import Load
from mlx_magic.model_pool.pool import fits
from mlx_magic.model_pool.unload import Unload
from mlx_magic.notebook.display.phase_line import phase_line
from mlx_magic.session import Session

if TYPE_CHECKING:
    from mlx_magic.models.catalog.local_models import ModelOnDisk

ModelState = Literal["loaded", "loading", "on disk", "bundled", "unusable"]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model as the panel lists it.

    Attributes
    ----------
    name : str
        Its name in cells.
    state : {"loaded", "loading", "on disk", "bundled", "unusable"}
    kind : str
        ``"vision"``, ``"text"``, or ``""`` if unknown.
    details : str
        Architecture, quantization and size.
    nbytes : int
        Bytes in memory if loaded, else on disk; 0 if unknown.
    users : int
        Number of requests that use it.
    problem : str
        Why it cannot be used; ``""`` if it can.
    progress : Progress or None
        None unless it is loading.
    default : bool
        Whether it is the default model of cells.
    fits : bool or None
        Whether it fits into memory now; None if unknown.
    pinned : bool
        Whether it is protected from eviction.
    leaving : bool
        Whether it will be unloaded once no request uses it.
    """

    name: str
    state: ModelState
    kind: str = ""
    details: str = ""
    nbytes: int = 0
    users: int = 0
    problem: str = ""
    progress: Progress | None = None
    default: bool = False
    fits: bool | None = None
    pinned: bool = False
    leaving: bool = False

    @property
    def title(self) -> str:
        """Its name, with control characters escaped."""
        return shown(self.name, 200)

    @property
    def label(self) -> str:
        """One line for a menu."""
        return " · ".join(part for part in (self.title, self.kind, self.state) if part)

    @property
    def line(self) -> str:
        """Details beside its name."""
        if self.progress is not None:
            return phase_line(self.progress)
        if self.problem:
            return shown(self.problem, 1000)
        size = amount(self.nbytes) if self.nbytes else ""
        fit = {True: "fits", False: "does not fit now", None: ""}[self.fits]
        return " · ".join(part for part in (self.kind, self.details, size, fit) if part)


def choices(session: Session, disk: Sequence[ModelOnDisk]) -> list[ModelChoice]:
    """Return the models to choose from: loaded ones first, then loading ones.

    Parameters
    ----------
    session : Session
    disk : sequence of ModelOnDisk
        Result of the last scan.
    """
    default = session.default_model or DEMO
    found: dict[str, ModelChoice] = {}
    paths: set[str] = set()
    unloads = unloading(session.running)
    for model in session.pool:
        if model.adapter is None:
            paths.add(model.path)
        found[model.name] = ModelChoice(
            model.name,
            "loaded",
            model.kind,
            _details(model.model_type, model.quantization, model.adapter, trusted=model.trusted),
            model.nbytes,
            model.users,
            default=default in model.names,
            pinned=model.pinned,
            leaving=any(unload.name in model.names for unload in unloads),
        )
    for name, task in loading(session.running):
        if name not in found and not any(name in m.names for m in session.pool):
            found[name] = ModelChoice(
                name, "loading", progress=task.progress, default=name == default
            )
    for entry in disk:
        if entry.name in found or str(entry.path) in paths:
            continue
        state: ModelState = "bundled" if entry.name == DEMO else "on disk"
        problem = "" if entry.partly else entry.problem
        details = _details(entry.model_type, entry.quantization)
        found[entry.name] = ModelChoice(
            entry.name,
            "unusable" if problem else state,
            entry.kind,
            f"{details} · partly downloaded" if entry.partly else details,
            entry.nbytes,
            problem=problem,
            default=entry.name == default,
            fits=None if problem else fits(session.pool, entry.needed),
        )
    for name, target in session.names.targets.items():
        # Aliases with an adapter, or defined since the last scan.
        if name not in found and (target.adapter is not None or target.model not in paths):
            details = _details("", None, target.adapter)
            found[name] = ModelChoice(name, "on disk", details=details, default=name == default)
    if default not in found and not any(choice.default for choice in found.values()):
        found[default] = ModelChoice(default, "on disk", default=True)
    return list(found.values())


def loading(running: Sequence[Task[Any]]) -> list[tuple[str, Task[Any]]]:
    """Return running loads, and requests that load a model, with the model's name."""
    loads: list[tuple[str, Task[Any]]] = []
    for task in running:
        if isinstance(task, Load):
            loads.append((task.name, task))
        elif isinstance(task, Generation) and task.progress.phase in ("loading", "downloading"):
            loads.append((task.request.model, task))
    return loads


def unloading(running: Sequence[Task[Any]]) -> list[Unload]:
    """Return running unloads."""
    return [task for task in running if isinstance(task, Unload)]


def _details(
    model_type: str, quantization: str | None, adapter: str | None = None, *, trusted: bool = False
) -> str:
    allowed = "remote code allowed" if trusted else ""
    tuned = f"adapter {PurePath(adapter).name}" if adapter else ""
    parts = (model_type, quantization, tuned, allowed)
    return " · ".join(shown(part, 200) for part in parts if part)
