"""Registry entries: a model in memory, its names and its holders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mlx_magic.backends.base import LoadedModel
from mlx_magic.model_pool.budget import ModelUsage
from mlx_magic.model_pool.model_info import ModelInfo
from mlx_magic.model_pool.unload import Unload
from mlx_magic.models.checkpoints.checkpoint import Checkpoint


class ModelKey(NamedTuple):
    """The identity of a model in memory.

    Attributes
    ----------
    folder : str
    adapter : str or None
        Folder of the LoRA adapter that was loaded with it.
    trusted : bool
        Whether the load was allowed to run the checkpoint's code.
    """

    folder: str
    adapter: str | None
    trusted: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, trusted: bool) -> ModelKey:
        """Return the key of a checkpoint that is loaded with this permission."""
        adapter = None if checkpoint.adapter is None else str(checkpoint.adapter.path)
        return cls(str(checkpoint.path.resolve()), adapter, trusted)

    @classmethod
    def any_of(cls, checkpoint: Checkpoint) -> list[ModelKey]:
        """Return the keys of a checkpoint for both permissions, the trusted one first."""
        return [cls.of(checkpoint, trusted=trusted) for trusted in (True, False)]


@dataclass(slots=True, eq=False)
class PoolEntry:
    """A loaded model with its names and holders; changed under the registry's lock.

    Attributes
    ----------
    checkpoint : Checkpoint
    model : LoadedModel
    key : ModelKey
    nbytes : int
        Bytes in memory.
    names : list of str
        All names; the first is displayed.
    holders : list
        The requests, leases and loads that hold the model.
    unloads : list of Unload
        Unloads that wait until the model has no holder.
    pinned : bool
    last_used : float
        Seconds of the pool's clock.
    """

    checkpoint: Checkpoint
    model: LoadedModel
    key: ModelKey
    nbytes: int
    names: list[str] = field(default_factory=list)
    holders: list[object] = field(default_factory=list)
    unloads: list[Unload] = field(default_factory=list)
    pinned: bool = False
    last_used: float = 0.0

    @property
    def plain_name(self) -> str:
        """The name of the model when other models have taken all of its names."""
        path, adapter = self.checkpoint.path, self.checkpoint.adapter
        return str(path) if adapter is None else f"{path}+{adapter.path.name}"

    @property
    def closing(self) -> bool:
        """Whether a forced unload waits for the cancelled users; no new holder is allowed then."""
        return any(unload.force and not unload.done for unload in self.unloads)

    def info(self, now: float) -> ModelInfo:
        """Return the public description."""
        checkpoint, together = self.checkpoint, self.model.together
        return ModelInfo(
            name=self.names[0],
            names=tuple(self.names),
            kind=checkpoint.kind,
            model_type=checkpoint.model_type,
            quantization=checkpoint.quantization,
            nbytes=self.nbytes,
            users=len(self.holders),
            path=str(checkpoint.path),
            trusted=self.key.trusted,
            adapter=self.key.adapter,
            pinned=self.pinned,
            idle=0.0 if self.holders else max(now - self.last_used, 0.0),
            together=together.together,
            why_apart=together.why,
        )

    def usage(self) -> ModelUsage:
        """Return the data that the budget computation needs."""
        return ModelUsage(
            self.key, self.names[0], self.nbytes, self.last_used, len(self.holders), self.pinned
        )
