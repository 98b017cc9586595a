"""A model in the pool and a load on its way, as everyone outside of the pool sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlx_magic.inference.work import Clock, Work


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model in the pool, as a person sees it.

    Attributes
    ----------
    name : str
        Alias, folder or repository id it was loaded as.
    names : tuple of str
        All names that it goes by.
    kind : {"vision", "text"}
    model_type : str
        Architecture, from config.json.
    quantization : str or None
    nbytes : int
        Bytes of the weights in memory.
    users : int
        Requests that hold it now.
    path : str
        Folder of the checkpoint.
    trusted : bool
        Whether this load was allowed to run the checkpoint's code.
    adapter : str or None
        Folder of the LoRA adapter that was loaded with it.
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


class Load(Work["ModelInfo | None"]):
    """A load that somebody asked for; its outcome is None when it was cancelled.

    Parameters
    ----------
    name : str
        The model, as it was asked for.
    clock : callable
        Seconds, monotonic.

    Attributes
    ----------
    name : str
    before_success : callable
        Called once the model is loaded and before anybody learns of it.
    """

    def __init__(self, name: str, *, clock: Clock) -> None:
        super().__init__(clock)
        self.name = name
        self.before_success: Callable[[], None] = lambda: None

    def succeed(self, outcome: ModelInfo | None) -> None:
        """Set the outcome, unless there is one already."""

        def completed() -> ModelInfo | None:
            self.before_success()
            return outcome

        self._finish(completed)

    def _cancelled_outcome(self) -> None:
        return None
