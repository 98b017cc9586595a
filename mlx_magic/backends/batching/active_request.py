"""State of a request while a model answers it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlx_magic.backends.base import Report
from mlx_magic.backends.batching.admission_queue import Reservation
from mlx_magic.backends.device import platform
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import GenerationChunk, Phase


@dataclass(slots=True)
class ActiveRequest:
    """A request while it is answered; its counts are updated as they become known.

    Attributes
    ----------
    request : GenerationRequest
    cancel : CancelToken
    report : callable
        Takes each `GenerationChunk`.
    images : int
        Images of the whole conversation.
    prompt_tokens, image_tokens : int
    cached_tokens : int
        Prompt tokens whose keys and values are cached.
    reservation : Reservation or None
        The memory that it may take; None before it is admitted.
    """

    request: GenerationRequest
    cancel: CancelToken
    report: Report
    images: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    reservation: Reservation | None = None

    @property
    def sampling(self) -> Sampling:
        """Sampling options of the request."""
        return self.request.sampling

    def prefilling(self, prefilling: bool) -> None:
        """Note whether the prompt is still to be read, which takes memory of its own."""
        if self.reservation is not None:
            self.reservation.prefilling = prefilling

    def report_queued(self) -> None:
        """Report that the request waits for memory."""
        self.report(self._chunk("queued"))

    def report_prefill(self, read: int = 0) -> None:
        """Report prefill progress: prompt tokens read so far, after the cached ones."""
        self.report(self._chunk("prefill", read=read))

    def report_text(self, text: str, written: int) -> None:
        """Report the text since the last report, and the answer's token count so far."""
        self.prefilling(False)
        self.report(self._chunk("decode", text=text, written=written))

    def expand_image_tokens(self, length: int) -> None:
        """Raise the counts if one image token became many embeddings.

        Parameters
        ----------
        length : int
            Number of embeddings of the prompt.
        """
        extra = length - self.prompt_tokens
        if extra > 0:
            self.prompt_tokens += extra
            self.image_tokens += extra

    def pad_tokens(self, tokens: list[int]) -> list[int]:
        """Pad `tokens` to one entry per embedding; the padding's values are not used."""
        return [0] * (self.prompt_tokens - len(tokens)) + tokens

    def vision_progress(self, done: int, total: int) -> None:
        """Check `cancel`, and report vision progress; between two images.

        Parameters
        ----------
        done, total : int
            Both may count tiles, if the model cuts images into tiles, and the total may grow
            from call to call.

        Raises
        ------
        Cancelled
        """
        self.cancel.checkpoint()
        seen = done * self.images // total if total >= self.images else done
        if self.images > 1 and (seen or total >= self.images):
            self.report(replace(self._chunk("vision"), images_seen=seen, image_count=self.images))

    def _chunk(
        self, phase: Phase, *, text: str = "", read: int = 0, written: int = 0
    ) -> GenerationChunk:
        """Return a `GenerationChunk` with the current counts.

        Parameters
        ----------
        phase : Phase
        text : str
            Text since the last report.
        read : int
            Prompt tokens read so far, after the cached ones. Ignored in decode.
        written : int
            Tokens of the answer so far.
        """
        writing = phase == "decode"
        return GenerationChunk(
            phase,
            text=text,
            prompt_read=self.prompt_tokens if writing else self.cached_tokens + read,
            prompt_tokens=self.prompt_tokens,
            image_tokens=self.image_tokens,
            completion_tokens=written,
            peak_memory=platform.peak() if writing else 0,
            cached_tokens=self.cached_tokens,
        )
