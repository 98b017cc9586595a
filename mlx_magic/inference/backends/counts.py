"""How many tokens one request has: of its prompt, its pictures and its answer."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_magic.inference.backends import device
from mlx_magic.inference.request import GenerationChunk, Phase


@dataclass(slots=True)
class Counts:
    """Token counts of one request, growing as they become known.

    Attributes
    ----------
    prompt_tokens, image_tokens : int
    cached_tokens : int
        Those of the prompt that need not be read.
    """

    prompt_tokens: int
    image_tokens: int
    cached_tokens: int = 0

    def embedded(self, length: int) -> None:
        """Count anew where one image token stands for many embeddings."""
        longer = length - self.prompt_tokens
        if longer > 0:
            self.prompt_tokens += longer
            self.image_tokens += longer

    def as_many(self, tokens: list[int]) -> list[int]:
        """Fill up where one image token stands for many embeddings: only their number counts."""
        return [0] * (self.prompt_tokens - len(tokens)) + tokens

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
        writing = phase == "writing"
        return GenerationChunk(
            phase,
            text=text,
            prompt_read=self.prompt_tokens if writing else self.cached_tokens + read,
            prompt_tokens=self.prompt_tokens,
            image_tokens=self.image_tokens,
            completion_tokens=written,
            peak_memory=device.peak() if writing else 0,
            cached_tokens=self.cached_tokens,
        )
