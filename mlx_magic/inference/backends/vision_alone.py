"""One answer of a vision model at a time, where its caches cannot be put together."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

from mlx_magic.errors import GenerationError
from mlx_magic.inference.backends import device, prefill
from mlx_magic.inference.backends.base import Report
from mlx_magic.inference.backends.counts import Counts
from mlx_magic.inference.backends.pictures import Pictures
from mlx_magic.inference.backends.recall import Recall
from mlx_magic.inference.cancel import CancelToken
from mlx_magic.inference.request import FinishReason, Sampling


class OneByOne:
    """Answers through mlx-vlm's own streaming; others wait.

    Parameters
    ----------
    model, processor : object
        As mlx-vlm loads them.
    recall : Recall
        What the model has seen.
    nbytes : int
        Bytes of the weights.
    """

    def __init__(self, model: Any, processor: Any, recall: Recall, nbytes: int) -> None:
        self._model = model
        self._processor = processor
        self._recall = recall
        self._nbytes = nbytes
        self._busy = False

    def close(self) -> None:
        """Let go of the model."""
        self._model = self._processor = None

    def __call__(
        self,
        inputs: dict[str, Any],
        pictures: Pictures | None,
        counts: Counts,
        sampling: Sampling,
        cancel: CancelToken,
        report: Report,
    ) -> Generator[None, None, FinishReason]:
        """Answer one request. See `LoadedModel.generate`."""
        from mlx_vlm.models.cache import make_prompt_cache

        while self._busy:
            cancel.checkpoint()
            yield
        if sampling.seed is None:
            # Else it would repeat after an earlier request's seed.
            device.fresh_seed()
        caches = make_prompt_cache(self._model.language_model)
        with contextlib.ExitStack() as stack:
            self._busy = True
            stack.callback(setattr, self, "_busy", False)
            unwatch = stack.enter_context(
                prefill.watched(
                    caches, cancel, lambda read: report(counts.chunk("reading", read=read))
                )
            )
            looking = self._seeing_then_reading(pictures, counts, cancel, report)
            stack.enter_context(prefill.replaced(self._model, "get_input_embeddings", looking))
            stream = self._stream(inputs, caches, sampling)
            stack.callback(stream.close)
            for count, piece in enumerate(stream):
                if count == 0:
                    unwatch()
                report(counts.chunk("writing", text=piece.text, written=piece.generation_tokens))
                if piece.finish_reason is not None:
                    return "stop" if piece.finish_reason == "stop" else "length"
                cancel.checkpoint()
                yield
        raise GenerationError("mlx-vlm ended without a finish reason.", model="")

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
            prefill_step_size=device.prefill_chunk(self._nbytes),
            skip_special_tokens=True,
        )

    def _seeing_then_reading(
        self, pictures: Pictures | None, counts: Counts, cancel: CancelToken, report: Report
    ) -> Any:
        """Stand in front of the vision tower, to know when seeing ends and reading begins."""
        import mlx.core as mx

        original = self._model.get_input_embeddings

        def get_input_embeddings(*args: Any, **kwargs: Any) -> Any:
            def see() -> Any:
                output = original(*args, **kwargs)
                mx.eval(output.inputs_embeds)
                return output

            cancel.checkpoint()
            output = self._recall.look(self._model, see, pictures)
            counts.embedded(int(output.inputs_embeds.shape[1]))
            cancel.checkpoint()
            report(counts.chunk("reading"))
            return output

        return get_input_embeddings
