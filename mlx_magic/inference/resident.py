"""A model in memory, as the pool itself sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_magic.inference.backends.base import LoadedModel
from mlx_magic.inference.checkpoint import Checkpoint
from mlx_magic.inference.model_info import ModelInfo


@dataclass(slots=True)
class Resident:
    """A loaded model with its names and its users; changed under the pool's lock.

    Attributes
    ----------
    checkpoint : Checkpoint
    model : LoadedModel
    trusted : bool
        Whether its load was allowed to run the checkpoint's code.
    names : list of str
        All that it goes by; the first is shown.
    users : int
        Requests that hold it now.
    """

    checkpoint: Checkpoint
    model: LoadedModel
    trusted: bool
    names: list[str] = field(default_factory=list)
    users: int = 0

    def info(self) -> ModelInfo:
        """Return what a person gets to see of it now."""
        checkpoint = self.checkpoint
        return ModelInfo(
            name=self.names[0],
            names=tuple(self.names),
            kind=checkpoint.kind,
            model_type=checkpoint.model_type,
            quantization=checkpoint.quantization,
            nbytes=self.model.nbytes,
            users=self.users,
            path=str(checkpoint.path),
            trusted=self.trusted,
        )
