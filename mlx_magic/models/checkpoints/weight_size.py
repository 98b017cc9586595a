"""The memory of a checkpoint's weights."""

from __future__ import annotations

from collections.abc import Callable

from mlx_magic.models.checkpoints.checkpoint import Checkpoint


def expected(checkpoint: Checkpoint, *, float32: Callable[[int], bool]) -> int:
    """Return the estimated bytes of a checkpoint's weights in memory.

    Parameters
    ----------
    checkpoint : Checkpoint
    float32 : callable
        Called with the bytes of the weights in float32; returns whether they are unpacked to
        float32.
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
