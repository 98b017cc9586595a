"""How much of its work a model was spared by what it saw and read before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Reuse:
    """Counts since the load, and what is kept now.

    Attributes
    ----------
    image_hits, image_misses : int
        Pictures (or tiles, where a model cuts them) that were known, and that were encoded.
    image_bytes : int
        What is kept of pictures.
    input_bytes : int
        What is kept of how they were cut and scaled.
    prefix_hits, prefix_misses : int
        Prompts whose beginning was known, and those that were read from the start.
    prefix_bytes : int
        What is kept of prompts.
    limit_bytes : int
        What all together may take at most.
    """

    image_hits: int = 0
    image_misses: int = 0
    image_bytes: int = 0
    input_bytes: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    prefix_bytes: int = 0
    limit_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """What is kept in all, in bytes."""
        return self.image_bytes + self.input_bytes + self.prefix_bytes

    @classmethod
    def total(cls, parts: Iterable[Reuse]) -> Reuse:
        """Add up what several models say."""
        stats = list(parts)
        return cls(*(sum(getattr(part, field.name) for part in stats) for field in fields(cls)))
