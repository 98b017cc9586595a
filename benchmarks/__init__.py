"""Measurements against raw mlx-vlm and a bare IPython; run ``python -m benchmarks``."""
