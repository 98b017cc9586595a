"""Embeddings of a request: what the language model of a vision model reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.prefix_cache.image_keys import ImageKeys
from mlx_magic.backends.prefix_cache.prompt_cache import CachedPrefix
from mlx_magic.backends.vision.caches import VisionCaches
from mlx_magic.backends.vision.forward import STORED


class Embedder:
    """Makes embeddings after the cached prefix, and encodes only images that are not cached.

    Parameters
    ----------
    model : module
        As mlx-vlm loads it.
    caches : VisionCaches
    """

    def __init__(self, model: Any, caches: VisionCaches) -> None:
        self._model = model
        self._caches = caches
        self._needs_whole = caches.keeps_positions

    def embeds(
        self,
        inputs: Mapping[str, Any],
        image_keys: ImageKeys | None,
        start: CachedPrefix,
        active: ActiveRequest,
    ) -> dict[str, Any]:
        """Return the language model's inputs after the cached prefix.

        Parameters
        ----------
        inputs : mapping
            The processor's output.
        image_keys : ImageKeys or None
        start : CachedPrefix
            Reset to no prefix if the prefix cannot be used.
        active : ActiveRequest
            Its token counts are updated.

        Returns
        -------
        dict
            ``inputs_embeds`` of shape (1, tokens, width), and the model's further outputs.

        Raises
        ------
        Cancelled
            Between two groups of images.
        """
        caches = self._caches
        # Without images after the prefix, the vision encoder need not run. But some models cut
        # further inputs themselves, and need those of the whole prompt: positions depend on all
        # images, whose features are cached.
        whole = not start.count or self._needs_whole or caches.has_images(inputs, start.count)
        suffix = {"input_ids": inputs["input_ids"][:, start.count :]}
        embeds = caches.without_ignored(
            self._embed(inputs if whole else suffix, image_keys, active)
        )
        length = int(embeds["inputs_embeds"].shape[1]) + (0 if whole else start.count)
        extra = embeds.keys() - {"inputs_embeds"}
        # These are cut by the model, which then needs them of the whole prompt.
        self._needs_whole = self._needs_whole or bool(extra)
        if not caches.may_follow_prefix(extra) or length != active.prompt_tokens:
            # Something of the prompt depends on all of it: read it as a whole, do not cache it.
            if start.count:
                return self.embeds(inputs, image_keys, start.without_cache(), active)
            start.without_cache()
        if start.count and whole:
            embeds["inputs_embeds"] = embeds["inputs_embeds"][:, start.count :]
        active.expand_image_tokens(length)
        if caches.keeps_positions and "position_ids" not in extra:
            # The model has stored them in itself, where the next prompt's would replace them.
            embeds[STORED] = upstream.stored_positions(self._model.language_model)
        return embeds

    def _embed(
        self, inputs: Mapping[str, Any], image_keys: ImageKeys | None, active: ActiveRequest
    ) -> dict[str, Any]:
        """Let the model make embeddings; its vision encoder runs for new images only."""
        import mlx.core as mx

        extra = {
            key: value
            for key, value in inputs.items()
            if key not in ("input_ids", "pixel_values", "mask")
        }

        def embed() -> dict[str, Any]:
            output = self._model.get_input_embeddings(
                inputs["input_ids"], inputs.get("pixel_values"), mask=inputs.get("mask"), **extra
            )
            mx.eval(output.inputs_embeds)
            return {key: value for key, value in output.to_dict().items() if value is not None}

        with mx.stream(upstream.VISION_BATCHES.names.generation_stream):
            return self._caches.encode(self._model, embed, active.vision_progress, image_keys)
