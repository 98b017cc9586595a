"""Requests, results, and the scheduler of the one MLX thread. Does not import MLX."""
