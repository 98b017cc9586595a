"""Requests, results, and the scheduler of the one MLX thread; knows no MLX."""
