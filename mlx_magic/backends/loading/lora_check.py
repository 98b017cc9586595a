"""Check that a LoRA adapter fits its model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_magic.errors import CheckpointError
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

# Names of the two factors and of the base layer: in mlx-lm and mlx-vlm, and in mlx-vlm's older
# files.
_FORMS = (("lora_a", "lora_b", "linear"), ("A", "B", "original_layer"))


def folder(checkpoint: Checkpoint) -> str | None:
    """Return the folder of a checkpoint's adapter, as a str."""
    return None if checkpoint.adapter is None else str(checkpoint.adapter.path)


def require_fit(model: Any, checkpoint: Checkpoint) -> None:
    """Refuse an adapter of another model, before any weights are in memory.

    mlx-lm does so itself; mlx-vlm would ignore unknown weights, and accept wrong shapes.

    Parameters
    ----------
    model : mlx.nn.Module
        Lazily loaded, with its adapter.
    checkpoint : Checkpoint

    Raises
    ------
    CheckpointError
    """
    if checkpoint.adapter is None:
        return
    wrong = next(_misfits(model, checkpoint.adapter.path), None)
    if wrong is not None:
        # The error's traceback must not keep the weights alive.
        model.clear()
        raise CheckpointError(
            f"{checkpoint.name}: the adapter {checkpoint.adapter.path} belongs to another model "
            f"({wrong}): load it with the model that it was trained on.",
            model=checkpoint.name,
        )


def _misfits(model: Any, path: Any) -> Iterator[str]:
    """Yield what of an adapter does not fit the model."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    known = {name for name, _ in tree_flatten(model.parameters())}
    files = (path / name for name in ("adapters.safetensors", "weights.safetensors"))
    # Lazy: only the file's header is read.
    tensors: Any = mx.load(str(next(file for file in files if file.is_file())))
    yield from (f"it has no {name}" for name in tensors if name not in known)
    for name, module in model.named_modules():
        for first, second, inner in _FORMS:
            base = module.get(inner) if first in module and second in module else None
            if base is not None and "weight" in base and base["weight"].ndim == 2:
                outputs, inputs = base["weight"].shape
                if hasattr(base, "bits"):
                    inputs = inputs * 32 // base.bits
                shapes = tuple(module[first].shape), tuple(module[second].shape)
                rank = shapes[0][-1]
                if shapes != ((inputs, rank), (rank, outputs)):
                    yield f"{name} is {inputs} by {outputs}, the adapter's {shapes[0]}, {shapes[1]}"
