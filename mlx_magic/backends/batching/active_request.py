"""A request while a model answers it: what its answer needs at every step."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_magic.backends.base import Report
from mlx_magic.backends.batching.admission_queue import Place
from mlx_magic.backends.batching.counts import Counts
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest, Sampling


@dataclass(slots=True)
class Asked:
    """A request that has its place in memory.

    Attributes
    ----------
    request : GenerationRequest
    counts : Counts
    place : Place
    cancel : CancelToken
    report : callable
        Takes each `GenerationChunk`.
    """

    request: GenerationRequest
    counts: Counts
    place: Place
    cancel: CancelToken
    report: Report

    @property
    def sampling(self) -> Sampling:
        """How it is answered."""
        return self.request.sampling

    def was_read(self, read: int = 0) -> None:
        """Report that so many tokens of its prompt were read, after those that were known."""
        self.report(self.counts.chunk("reading", read=read))

    def wrote(self, text: str, written: int) -> None:
        """Report what was written since the last one, and the tokens of the answer so far."""
        self.place.reading = False
        self.report(self.counts.chunk("writing", text=text, written=written))
