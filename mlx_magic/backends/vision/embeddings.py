"""From a request's inputs to embeddings: what the language model of a vision model reads."""

from __future__ import annotations

from typing import Any

from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.prefix_cache.image_keys import ImageKeys
from mlx_magic.backends.vision.caches import CachedPrefix, VisionCaches


class Seeing:
    """Lets a model make embeddings; of pictures and words that are new to it only.

    Parameters
    ----------
    model : module
        As mlx-vlm loads it.
    recall : VisionCaches
        What it has seen.
    """

    def __init__(self, model: Any, recall: VisionCaches) -> None:
        self._model = model
        self._recall = recall

    def embeds(
        self,
        inputs: dict[str, Any],
        pictures: ImageKeys | None,
        start: CachedPrefix,
        asked: ActiveRequest,
    ) -> dict[str, Any]:
        """Return what the language model reads, from the start on.

        Parameters
        ----------
        inputs : dict
            The processor's output.
        pictures : ImageKeys or None
        start : CachedPrefix
            How much of it was read before; none of it where that cannot be used.
        asked : ActiveRequest
            Its counts become known here.

        Returns
        -------
        dict
            ``inputs_embeds`` of shape (1, tokens, width), and what else the model gives.

        Raises
        ------
        Cancelled
            Between two groups of pictures.
        """
        shows = self._recall.shows(inputs, start.count)
        # Words alone: the vision tower is not asked.
        words = {"input_ids": inputs["input_ids"][:, start.count :]}
        embeds = self._see(inputs if shows or not start.count else words, pictures, asked)
        length = int(embeds["inputs_embeds"].shape[1])
        if set(embeds) != {"inputs_embeds"} or length + (not shows) * start.count != (
            asked.counts.prompt_tokens
        ):
            # More than embeddings belongs to this prompt: it is read as a whole, and not kept.
            if start.count:
                return self.embeds(inputs, pictures, start.cold(), asked)
            start.cold()
        if start.count and shows:
            embeds["inputs_embeds"] = embeds["inputs_embeds"][:, start.count :]
        asked.counts.cached_tokens = start.count
        asked.counts.embedded(length)
        return embeds

    def _see(
        self, inputs: dict[str, Any], pictures: ImageKeys | None, asked: ActiveRequest
    ) -> dict[str, Any]:
        """Let the model make embeddings; its vision tower looks at what is new to it."""
        import mlx.core as mx
        from mlx_vlm.generate.common import generation_stream

        more = {
            key: value
            for key, value in inputs.items()
            if key not in ("input_ids", "pixel_values", "mask")
        }

        def see() -> dict[str, Any]:
            output = self._model.get_input_embeddings(
                inputs["input_ids"], inputs.get("pixel_values"), mask=inputs.get("mask"), **more
            )
            mx.eval(output.inputs_embeds)
            return {key: value for key, value in output.to_dict().items() if value is not None}

        between = asked.counts.looking(asked.cancel, asked.report)
        with mx.stream(generation_stream):
            return self._recall.look(self._model, see, between, pictures)
