"""Loading of text models, through mlx-lm."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.adapter import AdapterKind
from mlx_magic.backends.library_backend import LibraryBackend, Opened
from mlx_magic.backends.loading import fast_modules, lora_check
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.backends.text.adapter import TextAdapter
from mlx_magic.cancellation import CancelToken
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.upstream_checks import accepted


class TextBackend(LibraryBackend):
    """Loads text models with mlx-lm."""

    library = "mlx-lm"
    adapter: AdapterKind = TextAdapter

    def import_library(self) -> None:
        """Import mlx-lm."""
        import mlx_lm  # noqa: F401

    def opened(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        origins: Origins,
    ) -> Generator[None, None, Opened]:
        """Make the model with lazy weights. See `LibraryBackend.opened`."""
        import mlx_lm

        yield from ()
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
        return model, loading_tokenizer

    def speed_up(self, model: Any) -> None:
        """Speed up the model's modules on a GPU."""
        if fast_modules.is_worth():
            fast_modules.speed_up(model)
