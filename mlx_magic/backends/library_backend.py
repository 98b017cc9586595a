"""Loading of a model with its library, in slices: the steps that both libraries share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any

from mlx_magic.backends.base import LoadProgress
from mlx_magic.backends.device import platform
from mlx_magic.backends.loading import fast_modules, materialize
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.backends.model import LibraryModel
from mlx_magic.cancellation import CancelToken
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

Opened = tuple[Any, BackgroundCall[Any]]
"""A model with lazy weights, and the background call that loads its tokenizer or processor."""


class LibraryBackend(ABC):
    """Loads models with one library. See `Backend`."""

    library: str

    def estimate(self, checkpoint: Checkpoint) -> int:
        """Return the bytes of the weights in memory. See `Backend.estimate`."""
        return materialize.estimate(checkpoint)

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        progress: LoadProgress,
    ) -> Generator[None, None, LibraryModel]:
        """Load a model in slices. See `Backend.load`."""
        began = time.monotonic()
        platform.prepare()
        progress(0, 0, f"loading: importing {self.library}")
        yield
        cancel.checkpoint()
        self.import_library()
        progress(0, checkpoint.weight_bytes, "loading: reading the checkpoint")
        yield
        cancel.checkpoint()
        origins = Origins()
        model, loading = yield from self.opened(
            checkpoint, trust_remote_code=trust_remote_code, cancel=cancel, origins=origins
        )
        yield
        cancel.checkpoint()
        size, tokenizer = yield from materialize.materialize(
            model, cancel=cancel, progress=progress, origins=origins, beside=loading
        )
        if fast_modules.is_worth():
            fast_modules.speed_up(self.language_model(model))
        return self.ready(checkpoint, model, tokenizer, size, began)

    @abstractmethod
    def import_library(self) -> None:
        """Import the library: a slice of its own, since it takes long."""

    @abstractmethod
    def opened(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        origins: Origins,
    ) -> Generator[None, None, Opened]:
        """Make the model with lazy weights, and start to load its tokenizer or processor.

        Parameters
        ----------
        checkpoint : Checkpoint
            A folder on disk, perhaps with an adapter.
        trust_remote_code : bool
            Whether the checkpoint's own code may run.
        cancel : CancelToken
        origins : Origins
            Records where the weights are on disk.

        Raises
        ------
        Cancelled
        """

    @abstractmethod
    def language_model(self, model: Any) -> Any:
        """Return the part of a model that decodes."""

    @abstractmethod
    def ready(
        self, checkpoint: Checkpoint, model: Any, tokenizer: Any, nbytes: int, began: float
    ) -> LibraryModel:
        """Return the loaded model of what the library has loaded."""
