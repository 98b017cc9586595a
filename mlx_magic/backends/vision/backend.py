"""Loading of vision models, through mlx-vlm."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.adapter import AdapterKind
from mlx_magic.backends.device import platform
from mlx_magic.backends.library_backend import LibraryBackend, Opened
from mlx_magic.backends.loading import fast_modules, lora_check
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.backends.vision import cpu_encoders
from mlx_magic.backends.vision.adapter import VisionAdapter
from mlx_magic.cancellation import CancelToken
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

MAKES_ARRAYS = frozenset({"inkling", "sapiens2"})
"""Models whose processors make MLX arrays when they are created (read in mlx-vlm 0.7.10).

A lazy array can be used only on the thread that made it.
"""


class VisionBackend(LibraryBackend):
    """Loads vision models with mlx-vlm."""

    library = "mlx-vlm"
    adapter: AdapterKind = VisionAdapter

    def import_library(self) -> None:
        """Import mlx-vlm."""
        import mlx_vlm  # noqa: F401

    def opened(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        origins: Origins,
    ) -> Generator[None, None, Opened]:
        """Make the model with lazy weights, as ``mlx_vlm.load`` does (mlx-vlm 0.7.10).

        In one piece its steps kept a running answer waiting for a third of a second (2 B, H100).
        The processor is loaded on a background thread while the weights are read, unless it makes
        arrays. See `LibraryBackend.opened`.
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

    def speed_up(self, model: Any) -> None:
        """Speed up the language model on a GPU, and the vision encoders on some CPUs."""
        if fast_modules.is_worth():
            fast_modules.speed_up(model.language_model)
        if not platform.has_vector_math():
            cpu_encoders.use_numpy_exponentials(model)


def _in_one_piece(checkpoint: Checkpoint, adapter: str | None, options: dict[str, Any]) -> Opened:
    """Let mlx-vlm open the checkpoint, with its processor."""
    from mlx_vlm import load

    model, processor = load(str(checkpoint.path), adapter_path=adapter, lazy=True, **options)
    lora_check.require_fit(model, checkpoint)
    return model, BackgroundCall(lambda: processor, here=True)
