"""The bundled demo model."""

from __future__ import annotations

from pathlib import Path

__all__ = ["folder"]


def folder() -> Path:
    """Return the folder of the bundled model, which ``mlx_vlm.load`` takes."""
    return Path(__file__).parent / "model"
