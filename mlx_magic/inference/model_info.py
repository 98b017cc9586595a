"""A model in the pool and a load on its way, as everyone outside of the pool sees them."""

from __future__ import annotations

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


class Load(Work["ModelInfo | None"]):
    """A load that somebody asked for; its outcome is None when it was cancelled.

    Parameters
    ----------
    name : str
        The model, as it was asked for.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, name: str, *, clock: Clock) -> None:
        super().__init__(clock)
        self.name = name

    def _cancelled_outcome(self) -> None:
        return None
