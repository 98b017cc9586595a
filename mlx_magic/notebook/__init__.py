"""The notebook: magics, waiting, display. Knows nothing of MLX."""
