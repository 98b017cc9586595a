"""The machine that MLX runs on: memory, BLAS, compiled parts."""
