"""How much memory the weights of a checkpoint will take."""

from __future__ import annotations

from collections.abc import Callable

from mlx_magic.models.checkpoints.checkpoint import Checkpoint


def expected(checkpoint: Checkpoint, *, float32: Callable[[int], bool]) -> int:
    """Return the bytes that a checkpoint's weights will take in memory, as far as one can say.

    Parameters
    ----------
    checkpoint : Checkpoint
    float32 : callable
        Whether weights are unpacked to float32 where they take so many bytes as such.
    """
    quantization = checkpoint.config.get("quantization") or {}
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    unpacked = {
        "F16": 2.0,
        "BF16": 2.0,
        "U32": 32 / bits if isinstance(bits, int) and bits > 0 else 1.0,
    }
    unpacked_bytes = sum(
        int(size * unpacked.get(dtype, 1.0)) for dtype, size in checkpoint.bytes_by_dtype.items()
    )
    return unpacked_bytes if float32(unpacked_bytes) else checkpoint.weight_bytes
