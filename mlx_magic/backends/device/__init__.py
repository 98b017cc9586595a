"""The machine that MLX runs on: memory, BLAS, JIT compilation."""
