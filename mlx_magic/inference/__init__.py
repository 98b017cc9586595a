"""Inference: models, requests and the thread that MLX belongs to. Knows nothing of notebooks."""
