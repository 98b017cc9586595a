"""Public descriptions of models in the pool, leases and loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mlx_magic.engine.request import DEMO
from mlx_magic.engine.task import Clock, Task
from mlx_magic.errors import ImagesNotSupportedError


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model in the pool.

    Attributes
    ----------
    name : str
        Alias, folder or repository id by which it was loaded.
    names : tuple of str
        All names of the model.
    kind : {"vision", "text"}
    model_type : str
        Architecture, from config.json.
    quantization : str or None
    nbytes : int
        Bytes in memory, measured during the load.
    users : int
        Number of requests and leases that hold it.
    path : str
        Folder of the checkpoint.
    trusted : bool
        Whether the load was allowed to run the checkpoint's code.
    adapter : str or None
        Folder of the LoRA adapter that was loaded with it.
    pinned : bool
        Whether it stays until it is unloaded by hand.
    idle : float
        Seconds since the last use; 0 while it is held.
    together : bool
        Whether it answers several requests at once.
    why_apart : str
        Why it does not, as text; empty if it does.
    """

    name: str
    names: tuple[str, ...]
    kind: str
    model_type: str
    quantization: str | None
    nbytes: int
    users: int
    path: str
    trusted: bool
    adapter: str | None = None
    pinned: bool = False
    idle: float = field(default=0.0, compare=False)
    together: bool = field(default=True, compare=False)
    why_apart: str = field(default="", compare=False)


class Lease:
    """A lease held by code, which cannot be cancelled.

    Attributes
    ----------
    over : bool
        Whether it has ended. It then holds no model, not even one whose load ends later.
    """

    def __init__(self) -> None:
        self.over = False


class Load(Task["ModelInfo | None"]):
    """A requested load; its outcome is None when it was cancelled.

    Parameters
    ----------
    name : str
        The model, as it was requested.
    clock : callable
        Seconds, monotonic.
    pin : bool
        Whether the model is pinned when it is loaded.
    hold : Lease, optional
        A lease that holds the model as soon as it is loaded.

    Attributes
    ----------
    name : str
    pin : bool
    hold : Lease or None
    before_success : callable
        Called after the load and before the outcome is set.
    """

    def __init__(
        self, name: str, *, clock: Clock, pin: bool = False, hold: Lease | None = None
    ) -> None:
        super().__init__(clock)
        self.name = name
        self.pin = pin
        self.hold = hold
        self.before_success: Callable[[], None] = lambda: None

    def succeed(self, outcome: ModelInfo | None) -> None:
        """Set the outcome, unless there is one already."""

        def completed() -> ModelInfo | None:
            self.before_success()
            return outcome

        self._finish(completed)

    def _cancelled_outcome(self) -> None:
        return None


def no_images(name: str, models: Iterable[ModelInfo], *, before: bool) -> ImagesNotSupportedError:
    """Return the error for images that are given to a text model.

    Parameters
    ----------
    name : str
        The text model.
    models : iterable of ModelInfo
        The models in memory; the error names the vision models among them.
    before : bool
        Whether the images are in an earlier turn of the conversation.
    """
    vision = [model.name for model in models if model.kind == "vision"]
    vision = list(dict.fromkeys([*vision, DEMO]))
    otherwise = "begin a new conversation" if before else "leave the images out"
    return ImagesNotSupportedError(
        f"{name} is a text model and cannot see images"
        f"{', and this conversation has some' if before else ''}: ask a vision model "
        f"instead (at hand: {', '.join(vision)}), or {otherwise}.",
        model=name,
        vision_models=vision,
    )
