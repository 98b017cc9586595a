"""A request while a model answers it: what its answer needs at every step."""

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
    """A request that has its place in memory.

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
        """How it is answered."""
        return self.request.sampling

    def report_prefill(self, read: int = 0) -> None:
        """Report that so many tokens of its prompt were read, after those that were known."""
        self.report(self.counts.chunk("prefill", read=read))

    def report_text(self, text: str, written: int) -> None:
        """Report what was written since the last one, and the tokens of the answer so far."""
        self.reservation.prefilling = False
        self.report(self.counts.chunk("decode", text=text, written=written))


@dataclass(slots=True)
class TokenCounts:
    """Token counts of one request, growing as they become known.

    Attributes
    ----------
    prompt_tokens, image_tokens : int
    cached_tokens : int
        Those of the prompt that need not be read.
    images : int
        Pictures of the whole conversation.
    """

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int = 0
    images: int = 0

    def expand_image_tokens(self, length: int) -> None:
        """Count anew where one image token stands for many embeddings."""
        extra = length - self.prompt_tokens
        if extra > 0:
            self.prompt_tokens += extra
            self.image_tokens += extra

    def pad_tokens(self, tokens: list[int]) -> list[int]:
        """Fill up where one image token stands for many embeddings: only their number counts."""
        return [0] * (self.prompt_tokens - len(tokens)) + tokens

    def vision_progress(self, cancel: CancelToken, report: Report) -> Callable[[int, int], None]:
        """Return what is called between pictures: it looks at `cancel` and reports how far it is.

        It takes what is done and what there is: parts of pictures, where the model cuts them,
        or as many as were asked for so far.
        """

        def between(done: int, total: int) -> None:
            cancel.checkpoint()
            seen = done * self.images // total if total >= self.images else done
            if self.images > 1 and (seen or total >= self.images):
                report(replace(self.chunk("vision"), pictures_seen=seen, pictures=self.images))

        return between

    def chunk(
        self, phase: Phase, *, text: str = "", read: int = 0, written: int = 0
    ) -> GenerationChunk:
        """Return what to report.

        Parameters
        ----------
        phase : Phase
        text : str
            What was written since the last one.
        read : int
            Tokens of the prompt read so far, after those that were cached; all where it writes.
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
