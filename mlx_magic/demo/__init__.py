"""The bundled demo model."""

from __future__ import annotations

from pathlib import Path

__all__ = ["folder"]


def folder() -> Path:
    """Return the folder of the bundled model, in the format of ``mlx_vlm.load``."""
    return Path(__file__).parent / "model"
