"""Loading of text models, through mlx-lm."""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial

from mlx_magic.backends.base import LoadProgress
from mlx_magic.backends.device import platform
from mlx_magic.backends.loading import fast_modules, lora_check, materialize
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.backends.model import LibraryModel
from mlx_magic.backends.text.adapter import text_model
from mlx_magic.cancellation import CancelToken
from mlx_magic.models.checkpoints.checkpoint import Checkpoint


class TextBackend:
    """Loads text models with mlx-lm."""

    library = "mlx-lm"

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
        """Load a text model in slices. See `Backend.load`."""
        began = time.monotonic()
        platform.prepare()
        progress(0, 0, "loading: importing mlx-lm")
        yield
        cancel.checkpoint()
        from mlx_lm import utils

        progress(0, checkpoint.weight_bytes, "loading: reading the checkpoint")
        yield
        cancel.checkpoint()
        origins = Origins()
        with origins.recording(utils):
            model, config = utils.load_model(
                checkpoint.path, lazy=True, trust_remote_code=trust_remote_code
            )
        adapter = lora_check.folder(checkpoint)
        if adapter is not None:
            model = utils.load_adapters(model, adapter)
            model.eval()
        lora_check.require_fit(model, checkpoint)
        yield
        cancel.checkpoint()
        loading_tokenizer = BackgroundCall(
            partial(
                utils.load_tokenizer,
                checkpoint.path,
                {"trust_remote_code": trust_remote_code},
                eos_token_ids=config.get("eos_token_id"),
            ),
            here=trust_remote_code,
        )
        yield
        size, tokenizer = yield from materialize.materialize(
            model, cancel=cancel, progress=progress, origins=origins, beside=loading_tokenizer
        )
        fast_modules.speed_up(model)
        return text_model(checkpoint, model, tokenizer, size, began=began)
