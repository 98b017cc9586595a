"""Check that a model gives the same answers batched as alone."""
