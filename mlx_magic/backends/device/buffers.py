"""How many bytes of buffers no longer in use MLX keeps for the next step."""

from __future__ import annotations

LEAST = 32 * 2**20
"""What is kept however small the models are: MLX's own limit on the CPU."""

SHARE = 1 / 4
"""Of the bytes of the models resident."""

SHARE_OF_MEMORY = 1 / 8
"""Of the device's memory: no more than this, however large the models are."""


def cache_limit(resident: int, memory: int) -> int:
    """Return the bytes that MLX's buffer cache may hold.

    Each step frees the arrays of the one before, and asks for as many again: what is kept
    in between spares a call to the system's allocator. By itself MLX keeps 32 MiB on the
    CPU, and on a GPU as much as the whole memory limit, which is memory that neither a
    second model nor the notebook beside it gets. What a step needs grows with the model's
    width and layers, as its weights do: hence a quarter of them, between `LEAST` and an
    eighth of the memory.

    Measured with the bundled model (12 MB in float32, two CPU cores, best of eight): without
    any cache a token took 1.56 ms, with 1 MiB 1.51 ms, with 4 MiB to 512 MiB 1.43 to 1.49 ms,
    in no order; the first token came after 52 to 55 ms with each of them. The cache never
    held more than 2.8 MB. So for a small model `LEAST` is plenty.

    Parameters
    ----------
    resident : int
        Bytes of the weights of all models in memory.
    memory : int
        Bytes the device lets models use; 0 is unknown.
    """
    wanted = max(int(resident * SHARE), LEAST)
    return min(wanted, int(memory * SHARE_OF_MEMORY)) if memory else wanted
