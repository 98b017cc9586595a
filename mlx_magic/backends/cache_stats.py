"""Statistics of a model's caches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Hits and misses since the load, and bytes held now.

    Attributes
    ----------
    image_hits, image_misses : int
        Images (or tiles, if the model cuts images into tiles) from the feature cache, and
        encoded ones.
    image_bytes : int
        Bytes of the feature cache.
    input_bytes : int
        Bytes of the processor cache.
    prefix_hits, prefix_misses : int
        Prompts with a cached prefix, and prompts read from the start.
    prefix_bytes : int
        Bytes of the prefix cache.
    limit_bytes : int
        Maximum bytes of all caches.
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
        """Bytes of all caches."""
        return self.image_bytes + self.input_bytes + self.prefix_bytes

    @classmethod
    def total(cls, parts: Iterable[CacheStats]) -> CacheStats:
        """Sum the statistics of several models."""
        stats = list(parts)
        return cls(*(sum(getattr(part, field.name) for part in stats) for field in fields(cls)))
