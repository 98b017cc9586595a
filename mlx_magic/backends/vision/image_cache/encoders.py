"""Where a vision model has what encodes pictures, and how to stand in front of a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TOWERS = (
    "vision_tower",
    "vision_model",
    "visual",
    "vision_encoder",
    "vision",
    "image_encoder",
    "image_vit",
    "sam_model",
)
"""Names under which mlx-vlm's models have it."""


def towers(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield each tower of a model: what owns it, its name there, and itself.

    Parameters
    ----------
    model : module
        As mlx-vlm loads it; a tower is a part of it, or of one of its parts.
    """
    import mlx.nn as nn

    inner = [
        part
        for name, part in model.items()
        if isinstance(part, nn.Module) and name not in (*TOWERS, "language_model")
    ]
    for owner in (model, *inner):
        for name in TOWERS:
            tower = owner.get(name)
            if isinstance(tower, nn.Module):
                yield owner, name, tower
