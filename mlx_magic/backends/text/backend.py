"""Loading of text models, through mlx-lm."""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.base import LoadProgress
from mlx_magic.backends.device import platform
from mlx_magic.backends.loading import fast_modules, lora_check, materialize
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.backends.model import LibraryModel
from mlx_magic.backends.text.adapter import text_model
from mlx_magic.cancellation import CancelToken
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.upstream_checks import accepted


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
        import mlx_lm

        progress(0, checkpoint.weight_bytes, "loading: reading the checkpoint")
        yield
        cancel.checkpoint()
        origins = Origins()
        adapter = lora_check.folder(checkpoint)
        tokenizer_config = {"trust_remote_code": trust_remote_code}
        loading_tokenizer: BackgroundCall[Any]
        if upstream.TEXT_LOAD.off is not None:
            model, loaded = mlx_lm.load(
                str(checkpoint.path),
                tokenizer_config=tokenizer_config,
                adapter_path=adapter,
                lazy=True,
                # Some releases have no such argument; a checkpoint with code was refused before.
                **accepted(mlx_lm.load, {"trust_remote_code": trust_remote_code}),
            )
            loading_tokenizer = BackgroundCall(lambda: loaded, here=True)
        else:
            names = upstream.TEXT_LOAD.names
            with origins.recording(names.utils):
                model, config = names.load_model(
                    checkpoint.path, lazy=True, trust_remote_code=trust_remote_code
                )
            if adapter is not None:
                model = names.load_adapters(model, adapter)
                model.eval()
            loading_tokenizer = BackgroundCall(
                partial(
                    names.load_tokenizer,
                    checkpoint.path,
                    tokenizer_config,
                    eos_token_ids=config.get("eos_token_id"),
                ),
                here=trust_remote_code,
            )
        lora_check.require_fit(model, checkpoint)
        yield
        cancel.checkpoint()
        size, tokenizer = yield from materialize.materialize(
            model, cancel=cancel, progress=progress, origins=origins, beside=loading_tokenizer
        )
        fast_modules.speed_up(model)
        return text_model(checkpoint, model, tokenizer, size, began=began)
