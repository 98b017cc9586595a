"""Loading of vision models, as mlx-vlm does it, in slices."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.base import LoadProgress
from mlx_magic.backends.device import platform
from mlx_magic.backends.loading import fast_modules, lora_check, materialize
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.backends.model import LibraryModel
from mlx_magic.backends.vision import cpu_encoders
from mlx_magic.backends.vision.adapter import vision_model
from mlx_magic.cancellation import CancelToken
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

MAKES_ARRAYS = frozenset({"inkling", "sapiens2"})
"""Models whose processors make MLX arrays when they are created (read in mlx-vlm 0.7.10).

A lazy array can be used only on the thread that made it.
"""


class VisionBackend:
    """Loads vision models with mlx-vlm."""

    library = "mlx-vlm"

    def estimate(self, checkpoint: Checkpoint) -> int:
        """Return the bytes of the weights in memory. See `Backend.estimate`."""
        return materialize.estimate(checkpoint)

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        progress: LoadProgress,
    ) -> Generator[None, None, LibraryModel]:
        """Load a vision model in slices. See `Backend.load`."""
        began = time.monotonic()
        platform.prepare()
        progress(0, 0, "loading: importing mlx-vlm")
        yield
        cancel.checkpoint()
        import mlx_vlm  # noqa: F401 - a slice of its own, since the import takes long

        progress(0, checkpoint.weight_bytes, "loading: reading the checkpoint")
        yield
        cancel.checkpoint()
        origins = Origins()
        model, making = yield from _opened(
            checkpoint, trust_remote_code=trust_remote_code, cancel=cancel, origins=origins
        )
        yield
        size, processor = yield from materialize.materialize(
            model, cancel=cancel, progress=progress, origins=origins, beside=making
        )
        fast_modules.speed_up(model.language_model)
        if not platform.has_vector_math():
            cpu_encoders.use_numpy_exponentials(model)
        return vision_model(checkpoint, model, processor, size, began=began)


def _opened(
    checkpoint: Checkpoint, *, trust_remote_code: bool, cancel: CancelToken, origins: Origins
) -> Generator[None, None, tuple[Any, BackgroundCall[Any]]]:
    """Make the model with lazy weights, and start to load its processor.

    These are the steps of ``mlx_vlm.load`` (mlx-vlm 0.7.10). In one piece they kept a running
    answer waiting for a third of a second (2 B, H100). The processor is loaded on a background
    thread while the weights are read, unless it makes arrays.

    Parameters
    ----------
    checkpoint : Checkpoint
        A folder on disk, perhaps with an adapter.
    trust_remote_code : bool
        Whether the checkpoint's own code may run.
    cancel : CancelToken
    origins : Origins
        Records where the weights are on disk.

    Returns
    -------
    tuple
        The model, and the background call that loads its processor.

    Raises
    ------
    Cancelled
    """
    # An explicit False: by default transformers would prompt on the terminal.
    options = {"trust_remote_code": trust_remote_code}
    adapter = lora_check.folder(checkpoint)
    if upstream.VISION_LOAD.off or (adapter is not None and upstream.VISION_ADAPTERS.off):
        return _in_one_piece(checkpoint, adapter, options)
    names = upstream.VISION_LOAD.names
    with origins.recording(names.utils):
        model: Any = names.load_model(checkpoint.path, lazy=True, strict=True, **options)
    if adapter is not None:
        model = upstream.VISION_ADAPTERS.names.apply_lora_layers(model, adapter)
        model.eval()
    lora_check.require_fit(model, checkpoint)
    yield
    cancel.checkpoint()
    image_processor = names.load_image_processor(checkpoint.path, **options)
    yield
    cancel.checkpoint()
    stop_tokens = getattr(model.config, "eos_token_id", None)

    def processor() -> Any:
        made: Any = names.load_processor(
            checkpoint.path, True, eos_token_ids=stop_tokens, **options
        )
        if image_processor is not None:
            made.image_processor = image_processor
        return made

    makes_arrays = checkpoint.config.get("model_type") in MAKES_ARRAYS
    return model, BackgroundCall(processor, here=trust_remote_code or makes_arrays)


def _in_one_piece(
    checkpoint: Checkpoint, adapter: str | None, options: dict[str, Any]
) -> tuple[Any, BackgroundCall[Any]]:
    """Let mlx-vlm open the checkpoint, with its processor."""
    from mlx_vlm import load

    model, processor = load(str(checkpoint.path), adapter_path=adapter, lazy=True, **options)
    lora_check.require_fit(model, checkpoint)
    return model, BackgroundCall(lambda: processor, here=True)
