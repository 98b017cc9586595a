"""Compares answers of tiny checkpoints with raw mlx-vlm and mlx-lm, and writes what was shown."""
