"""Text models, through mlx-lm."""
