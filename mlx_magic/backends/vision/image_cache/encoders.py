"""Where a vision model has its vision encoder."""

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
"""Attribute names of vision encoders in mlx-vlm's models."""


def vision_encoders(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield each vision encoder of a model: its owner, its attribute name, and the encoder.

    Parameters
    ----------
    model : module
        As mlx-vlm loads it; its encoders belong to it or to one of its parts.
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
