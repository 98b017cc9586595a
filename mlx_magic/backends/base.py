"""Protocols of a library that runs models, and of its loaded models."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mlx_magic.backends.cache_stats import CacheStats
    from mlx_magic.cancellation import CancelToken
    from mlx_magic.engine.engine import StepSignal
    from mlx_magic.engine.request import GenerationRequest
    from mlx_magic.engine.result import FinishReason, GenerationChunk
    from mlx_magic.models.checkpoints.batch_support import Verdict
    from mlx_magic.models.checkpoints.checkpoint import Checkpoint

Report = Callable[["GenerationChunk"], None]
PrefetchFunction = Callable[["GenerationRequest", "CancelToken"], object]
LoadProgress = Callable[[int, int, str], None]


class LoadedModel(Protocol):
    """A model in memory. Every method runs on the inference thread."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory."""

    def warm_up(
        self, *, cancel: CancelToken, progress: LoadProgress
    ) -> Generator[StepSignal | None, None, None]:
        """Warm up after the load, so that the first request is as quick as the next.

        Parameters
        ----------
        cancel : CancelToken
            Token of the load.
        progress : callable
            Takes bytes done, total bytes and a note.

        Raises
        ------
        Cancelled
        """

    @property
    def prefetch(self) -> PrefetchFunction | None:
        """Prefetch: does the work of a request that needs no MLX, before the request's turn.

        None if the model has none. Any thread may call it. It may raise `Cancelled`, and returns
        an object to be held until the request has ended. It must not reference the model, whose
        arrays would then be freed on the calling thread.
        """

    @property
    def together(self) -> Verdict:
        """Whether requests are batched, and why not; safe from any thread."""

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[StepSignal | None, None, FinishReason]:
        """Answer one request; one decode step per slice.

        Parameters
        ----------
        request : GenerationRequest
        cancel : CancelToken
            Checked between prefill chunks and between decode steps.
        report : callable
            Takes each `GenerationChunk`.

        Returns
        -------
        FinishReason
            ``"stop"`` or ``"length"``.

        Raises
        ------
        Cancelled
            At the first cancellation point after `cancel` was set.
        """

    @property
    def reuse(self) -> CacheStats:
        """Statistics of the model's caches; safe from any thread."""

    def forget(self) -> int:
        """Clear the model's caches; return the bytes that they held."""

    def close(self) -> None:
        """Release the weights and return their memory to the system."""


class Backend(Protocol):
    """A library that can load one kind of model.

    Attributes
    ----------
    library : str
        Name of the library, for messages.
    """

    library: str

    def estimate(self, checkpoint: Checkpoint) -> int:
        """Return the bytes that a checkpoint's weights will take in memory.

        On the inference thread, because the dtype in memory depends on the device.
        """

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        progress: LoadProgress,
    ) -> Generator[StepSignal | None, None, LoadedModel]:
        """Load a checkpoint in slices; on the inference thread.

        Parameters
        ----------
        checkpoint : Checkpoint
        trust_remote_code : bool
            Whether the user allowed the checkpoint's own code for this load.
        cancel : CancelToken
            Checked between slices.
        progress : callable
            Takes bytes done, total bytes and a note.

        Raises
        ------
        Cancelled, CheckpointError, UnsupportedModelError
        """
