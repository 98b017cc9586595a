"""Vision models, through mlx-vlm."""
