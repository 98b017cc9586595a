"""Everything that uses MLX: loading, running and unloading of models."""
