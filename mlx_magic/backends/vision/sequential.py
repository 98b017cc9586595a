"""One answer of a vision model at a time, read and written by mlx-vlm itself."""

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


class OneByOne:
    """Answers through mlx-vlm's own streaming; nothing else may use the model meanwhile.

    Parameters
    ----------
    model, processor : object
        As mlx-vlm loads them.
    recall : VisionCaches
        What the model has seen.
    chunk : int
        Tokens of a prompt that are read at once.
    """

    def __init__(self, model: Any, processor: Any, recall: VisionCaches, chunk: int) -> None:
        self._model = model
        self._processor = processor
        self._recall = recall
        self._chunk = chunk

    def close(self) -> None:
        """Let go of the model."""
        self._model = self._processor = None

    def __call__(
        self,
        inputs: dict[str, Any],
        pictures: ImageKeys | None,
        asked: ActiveRequest,
        make_cache: Callable[[], list[Any]],
    ) -> Generator[None, None, FinishReason]:
        """Answer one request. See `LoadedModel.generate`."""
        if asked.sampling.seed is None:
            # Else it would repeat after an earlier request's seed.
            platform.fresh_seed()
        caches = make_cache()
        with contextlib.ExitStack() as stack:
            unwatch = stack.enter_context(
                prefill_hooks.watched(caches, asked.cancel, asked.was_read)
            )
            looking = self._seeing_then_reading(pictures, asked)
            stack.enter_context(
                prefill_hooks.replaced(self._model, "get_input_embeddings", looking)
            )
            stream = self._stream(inputs, caches, asked.sampling)
            stack.callback(stream.close)
            for count, piece in enumerate(stream):
                if count == 0:
                    unwatch()
                asked.wrote(piece.text, piece.generation_tokens)
                if piece.finish_reason is not None:
                    return "stop" if piece.finish_reason == "stop" else "length"
                asked.cancel.checkpoint()
                yield
        name = asked.request.model
        raise GenerationError(f"{name}: mlx-vlm ended without a finish reason.", model=name)

    def _stream(self, inputs: dict[str, Any], caches: list[Any], sampling: Sampling) -> Any:
        """Let mlx-vlm read the inputs and write, a token at a time."""
        from mlx_vlm import stream_generate

        more = {"min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty}
        return stream_generate(
            self._model,
            self._processor,
            "",
            **inputs,
            **{key: value for key, value in more.items() if value is not None},
            prompt_cache=caches,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            prefill_step_size=self._chunk,
            skip_special_tokens=True,
        )

    def _seeing_then_reading(self, pictures: ImageKeys | None, asked: ActiveRequest) -> Any:
        """Stand in front of the vision tower, to know when seeing ends and reading begins."""
        import mlx.core as mx

        original = self._model.get_input_embeddings

        def get_input_embeddings(*args: Any, **kwargs: Any) -> Any:
            def see() -> Any:
                output = original(*args, **kwargs)
                mx.eval(output.inputs_embeds)
                return output

            asked.cancel.checkpoint()
            between = asked.counts.looking(asked.cancel, asked.report)
            output = self._recall.look(self._model, see, between, pictures)
            asked.counts.embedded(int(output.inputs_embeds.shape[1]))
            asked.cancel.checkpoint()
            asked.was_read()
            return output

        return get_input_embeddings
