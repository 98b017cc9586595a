"""Requests to a vision model one at a time, through mlx-vlm's own `stream_generate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

from mlx_magic.backends.batching import prefill_hooks
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.image_keys import ImageKeys
from mlx_magic.backends.vision.caches import VisionCaches
from mlx_magic.engine.request import Sampling
from mlx_magic.engine.result import FinishReason
from mlx_magic.errors import GenerationError


class SequentialAnswers:
    """Answers through mlx-vlm's own streaming, with exclusive use of the model.

    Parameters
    ----------
    model, processor : object
        As mlx-vlm loads them.
    vision_caches : VisionCaches
    chunk : int
        Prompt tokens per prefill chunk.
    """

    def __init__(self, model: Any, processor: Any, vision_caches: VisionCaches, chunk: int) -> None:
        self._model = model
        self._processor = processor
        self._vision_caches = vision_caches
        self._chunk = chunk

    def close(self) -> None:
        """Release the model."""
        self._model = self._processor = None

    def __call__(
        self,
        inputs: dict[str, Any],
        image_keys: ImageKeys | None,
        active: ActiveRequest,
        make_cache: Callable[[], list[Any]],
    ) -> Generator[None, None, FinishReason]:
        """Answer one request. See `LoadedModel.generate`."""
        if active.sampling.seed is None:
            # Otherwise the answer would depend on an earlier request's seed.
            platform.fresh_seed()
        caches = make_cache()
        with contextlib.ExitStack() as stack:
            remove_hooks = stack.enter_context(
                prefill_hooks.cancellable_prefill(caches, active.cancel, active.report_prefill)
            )
            get_embeddings = self._reporting_embeddings(image_keys, active)
            stack.enter_context(
                prefill_hooks.replaced(self._model, "get_input_embeddings", get_embeddings)
            )
            stream = self._stream(inputs, caches, active.sampling)
            stack.callback(stream.close)
            for count, response in enumerate(stream):
                if count == 0:
                    remove_hooks()
                active.report_text(response.text, response.generation_tokens)
                if response.finish_reason is not None:
                    return "stop" if response.finish_reason == "stop" else "length"
                active.cancel.checkpoint()
                yield
        name = active.request.model
        raise GenerationError(f"{name}: mlx-vlm ended without a finish reason.", model=name)

    def _stream(self, inputs: dict[str, Any], caches: list[Any], sampling: Sampling) -> Any:
        """Start mlx-vlm's generator of tokens."""
        from mlx_vlm import stream_generate

        extra = {"min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty}
        return stream_generate(
            self._model,
            self._processor,
            "",
            **inputs,
            **{key: value for key, value in extra.items() if value is not None},
            prompt_cache=caches,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            prefill_step_size=self._chunk,
            skip_special_tokens=True,
        )

    def _reporting_embeddings(self, image_keys: ImageKeys | None, active: ActiveRequest) -> Any:
        """Wrap ``get_input_embeddings`` to report when vision ends and prefill begins."""
        import mlx.core as mx

        original = self._model.get_input_embeddings

        def get_input_embeddings(*args: Any, **kwargs: Any) -> Any:
            def embed() -> Any:
                output = original(*args, **kwargs)
                mx.eval(output.inputs_embeds)
                return output

            active.cancel.checkpoint()
            on_group = active.counts.vision_progress(active.cancel, active.report)
            output = self._vision_caches.encode(self._model, embed, on_group, image_keys)
            active.counts.expand_image_tokens(int(output.inputs_embeds.shape[1]))
            active.cancel.checkpoint()
            active.report_prefill()
            return output

        return get_input_embeddings
