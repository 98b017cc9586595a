"""All that knows MLX: models that load, answer and are let go of."""
