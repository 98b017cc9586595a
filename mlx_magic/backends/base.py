"""What the inference layer asks of a library that runs models."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mlx_magic.backends.cache_stats import Reuse
    from mlx_magic.cancellation import CancelToken
    from mlx_magic.engine.engine import StepSignal
    from mlx_magic.engine.request import GenerationRequest
    from mlx_magic.engine.result import FinishReason, GenerationChunk
    from mlx_magic.models.checkpoints.batch_support import Verdict
    from mlx_magic.models.checkpoints.checkpoint import Checkpoint

Report = Callable[["GenerationChunk"], None]
MakesReady = Callable[["GenerationRequest", "CancelToken"], object]
LoadProgress = Callable[[int, int, str], None]


class LoadedModel(Protocol):
    """A model in memory. Every method runs on the inference thread."""

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, as they are in memory."""

    def warm_up(
        self, *, cancel: CancelToken, progress: LoadProgress
    ) -> Generator[StepSignal | None, None, None]:
        """Do what would make its first request slower than the next; once, after its load.

        Parameters
        ----------
        cancel : CancelToken
            The load's.
        progress : callable
            Takes bytes done, bytes in all and a note.

        Raises
        ------
        Cancelled
        """

    @property
    def ahead(self) -> MakesReady | None:
        """What makes ahead of a request's turn all that needs no MLX, if there is such.

        Any thread may call it. It may raise `Cancelled`, and returns what is to be held until
        the request has ended. It must not hold the model, whose arrays would be freed there.
        """

    @property
    def together(self) -> Verdict:
        """Whether it answers several requests at once, and why not; safe from any thread."""

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[StepSignal | None, None, FinishReason]:
        """Answer one request, a decode step a slice.

        Parameters
        ----------
        request : GenerationRequest
        cancel : CancelToken
            Looked at between prefill chunks and between decode steps.
        report : callable
            Takes each `GenerationChunk`.

        Returns
        -------
        FinishReason
            ``"stop"`` or ``"length"``.

        Raises
        ------
        Cancelled
            At the first cancellation point after `cancel` was asked.
        """

    @property
    def reuse(self) -> Reuse:
        """What was reused, and what is kept for it; safe from any thread."""

    def forget(self) -> int:
        """Let go of what is kept for reuse; return its bytes."""

    def close(self) -> None:
        """Let go of the weights and give their memory back."""


class Backend(Protocol):
    """A library that can load one kind of model.

    Attributes
    ----------
    library : str
        Its name, for messages.
    """

    library: str

    def estimate(self, checkpoint: Checkpoint) -> int:
        """Return the bytes that a checkpoint's weights will take in memory.

        On the inference thread: what will be done to them depends on the device.
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
            Whether the person allowed the checkpoint's own code for this load.
        cancel : CancelToken
            Looked at between slices.
        progress : callable
            Takes bytes done, bytes in all and a note.

        Raises
        ------
        Cancelled, CheckpointError, UnsupportedModelError
        """
