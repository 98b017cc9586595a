"""State of a request while a model answers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mlx_magic.backends.base import Report
from mlx_magic.backends.batching.admission_queue import Reservation
from mlx_magic.backends.device import platform
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import GenerationChunk, Phase


@dataclass(slots=True)
class ActiveRequest:
    """A request that has reserved its memory.

    Attributes
    ----------
    request : GenerationRequest
    counts : TokenCounts
    reservation : Reservation
    cancel : CancelToken
    report : callable
        Takes each `GenerationChunk`.
    """

    request: GenerationRequest
    counts: TokenCounts
    reservation: Reservation
    cancel: CancelToken
    report: Report

    @property
    def sampling(self) -> Sampling:
        """Sampling options of the request."""
        return self.request.sampling

    def report_prefill(self, read: int = 0) -> None:
        """Report prefill progress: prompt tokens read so far, after the cached ones."""
        self.report(self.counts.chunk("prefill", read=read))

    def report_text(self, text: str, written: int) -> None:
        """Report the text since the last report, and the answer's token count so far."""
        self.reservation.prefilling = False
        self.report(self.counts.chunk("decode", text=text, written=written))


@dataclass(slots=True)
class TokenCounts:
    """Token counts of one request, updated as they become known.

    Attributes
    ----------
    prompt_tokens, image_tokens : int
    cached_tokens : int
        Prompt tokens whose keys and values are cached.
    images : int
        Images of the whole conversation.
    """

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int = 0
    images: int = 0

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

    def vision_progress(self, cancel: CancelToken, report: Report) -> Callable[[int, int], None]:
        """Return a callback for between images: checks `cancel` and reports vision progress.

        The callback takes the number done and the total. Both may count tiles, if the model
        cuts images into tiles, and the total may grow from call to call.
        """

        def between(done: int, total: int) -> None:
            cancel.checkpoint()
            seen = done * self.images // total if total >= self.images else done
            if self.images > 1 and (seen or total >= self.images):
                report(replace(self.chunk("vision"), images_seen=seen, image_count=self.images))

        return between

    def chunk(
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
