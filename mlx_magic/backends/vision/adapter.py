"""A vision model as mlx-vlm loads it: processor, embeddings, streaming and caches."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.adapter import Prompt
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.batching.forward import Inputs
from mlx_magic.backends.batching.memory_estimate import ModelDimensions
from mlx_magic.backends.batching.sampling import LogitsProcessor, SamplingParams, fresh_seed
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.chat_templates import chat_messages
from mlx_magic.backends.chat_templates.reasoning import (
    TAIL_TOKENS,
    ReasoningStream,
    marks_of,
    template_source,
)
from mlx_magic.backends.device import platform
from mlx_magic.backends.given_answers.frame import AnswerFrame
from mlx_magic.backends.given_answers.tokens import AnswerTokens
from mlx_magic.backends.prefix_cache.fingerprints import as_numpy
from mlx_magic.backends.prefix_cache.prompt_cache import CachedPrefix, CacheKind, PromptCache
from mlx_magic.backends.vision import forward
from mlx_magic.backends.vision import inputs as vision_inputs
from mlx_magic.backends.vision.caches import VisionCaches
from mlx_magic.backends.vision.forward import Embedder, VisionForward
from mlx_magic.backends.vision.image_cache.prefetch import Prefetch
from mlx_magic.backends.vision.inputs import (
    VisionInputs,
    fewer_tokens,
    resized_sizes,
    seen_sizes,
)
from mlx_magic.backends.vision.place_tokens import marked, place_tokens
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.places.grounding import Grounding
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.models.checkpoints.checkpoint import Checkpoint


class _Detokenizer:
    """mlx-vlm's detokenizer, which leaves out special tokens."""

    def __init__(self, detokenizer: Any, special: set[int]) -> None:
        self._detokenizer = detokenizer
        self._special = special

    @property
    def last_segment(self) -> str:
        segment: str = self._detokenizer.last_segment
        return segment

    def add_token(self, token: int) -> None:
        self._detokenizer.add_token(token, skip_special_token_ids=self._special)

    def finalize(self) -> None:
        self._detokenizer.finalize()


class VisionAdapter:
    """See `ModelAdapter`.

    Parameters
    ----------
    checkpoint : Checkpoint
    model, processor : object
        As mlx-vlm loads them.
    kind : {"plain", "states"} or None
        See `PromptCache`.
    chunk, nbytes : int
        Prompt tokens per prefill chunk; bytes of the weights.
    """

    library = "mlx-vlm"
    caches = upstream.VISION_CACHES
    sees_images = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Any,
        processor: Any,
        *,
        kind: CacheKind | None,
        chunk: int,
        nbytes: int,
    ) -> None:
        self._name = checkpoint.name
        self._config = checkpoint.config
        self._model = model
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._chunk = chunk
        self._special = set(getattr(self._tokenizer, "all_special_ids", None) or ())
        self._marks = marks_of(
            template_source(processor, self._tokenizer),
            str(checkpoint.config.get("model_type", "")),
        )
        known = self._special if self._marks else ()
        texts = {token: self._tokenizer.convert_ids_to_tokens(token) for token in known}
        self._place_tokens = place_tokens(self._tokenizer, self._special)
        # mlx-vlm's detokenizers leave these out.
        self._skipped = {token: text for token, text in texts.items() if isinstance(text, str)}
        self._inputs: Any = VisionInputs(self._name, model.config, processor)
        self._caches = VisionCaches(model, nbytes, kind=kind)
        self._embedder: Any = Embedder(model, self._caches)
        self.forward = VisionForward(
            model.language_model, getattr(self._tokenizer, "stopping_criteria", None)
        )
        self._shape = ModelDimensions.of(checkpoint.config)
        self.joint_tokens = platform.read_at_once(self._shape.vocabulary)

    @staticmethod
    def language_model(model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Return the language model and the model's configuration. See `AdapterKind`."""
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if not callable(getattr(tokenizer, "stopping_criteria", None)):
            upstream.VISION_BATCHES.turn_off("sets no stopping_criteria")
        return model.language_model, model.config

    @property
    def prompt_cache(self) -> PromptCache:
        """The prefix cache."""
        return self._caches.prompt_cache

    @property
    def prefetch(self) -> Prefetch:
        """Prefetch of a request's images. See `LoadedModel.prefetch`."""
        return self._caches.processor_cache.prefetch

    @property
    def stats(self) -> CacheStats:
        """Statistics of the caches."""
        return self._caches.counts

    def prompt(
        self, request: GenerationRequest, cancel: CancelToken
    ) -> Generator[None, None, Prompt]:
        """Run chat template and processor; the template renders on a background thread."""
        making = self._inputs.prompt(request, cancel)
        yield
        rendered = yield from making.result(cancel)
        with self._caches.processor_cache.intercepting(
            self._processor, chat_messages.images(request)
        ):
            inputs = self._inputs.make_inputs(rendered)
        tokens = as_numpy(inputs["input_ids"]).reshape(-1).tolist()
        count = vision_inputs.image_tokens(inputs, self._model.config)
        return Prompt(
            tokens,
            count,
            inputs,
            image_end=self._caches.image_end(tokens),
            frame=rendered.frame,
        )

    @contextlib.contextmanager
    def keyed(self, request: GenerationRequest, prompt: Prompt) -> Iterator[None]:
        """Set the keys of a prompt's images within this block."""
        images = chat_messages.images(request)
        with self._caches.processor_cache.keyed(images, prompt.inputs) as image_keys:
            prompt.image_keys = image_keys
            yield

    def seen_sizes(self, request: GenerationRequest, prompt: Prompt) -> tuple[str, ...] | None:
        """Return the size at which the model sees each image. See `ModelAdapter`."""
        count = len(chat_messages.images(request))
        if not count:
            return None
        seen = seen_sizes(prompt.inputs, count, self._patch_size)
        # The sizes of earlier turns were reported with these turns.
        return seen[count - len(request.images) :] if seen else seen

    def grounding(self, request: GenerationRequest, prompt: Prompt) -> Grounding:
        """Return what coordinates in the answer depend on. See `ModelAdapter`."""
        count, own = len(chat_messages.images(request)), len(request.images)
        resized = resized_sizes(prompt.inputs, count, self._patch_size)
        image_processor = getattr(self._processor, "image_processor", None)
        return replace(
            Grounding.of_config(self._config),
            seen=resized[count - own :],
            cropped=bool(getattr(image_processor, "do_center_crop", False)),
            earlier_images=count - own,
        )

    def marked(self, tokens: list[int]) -> str:
        """Return an answer with the special tokens that mark places. See `ModelAdapter`."""
        return marked(tokens, self._tokenizer, self._special, self._place_tokens)

    def fewer_image_tokens(self, prompt: Prompt, max_pixels: int) -> int | None:
        """Return how many image tokens ``max_pixels`` would leave. See `fewer_tokens`."""
        return fewer_tokens(prompt.inputs, self._patch_size, prompt.image_tokens, max_pixels)

    @property
    def _patch_size(self) -> int:
        patch = getattr(getattr(self._model.config, "vision_config", None), "patch_size", 14)
        return patch if isinstance(patch, int) else 14

    def start(self, prompt: Prompt) -> CachedPrefix:
        """Look a prompt up in the prefix cache."""
        return self._caches.start(prompt.inputs, prompt.image_keys)

    def waiting(self, prompt: Prompt, start: CachedPrefix) -> AbstractContextManager[None]:
        """Let others encode the images of a prompt. See `Embedder.waiting`."""
        waiting: AbstractContextManager[None] = self._embedder.waiting(
            prompt.inputs, prompt.image_keys, start
        )
        return waiting

    def embed(self, prompt: Prompt, start: CachedPrefix, active: ActiveRequest) -> Inputs:
        """Return embeddings after the cached prefix. See `Embedder.embeds`."""
        embeds: Inputs = self._embedder.embeds(prompt.inputs, prompt.image_keys, start, active)
        return embeds

    def probe(self, text: str) -> list[int]:
        """Return the tokens of a text without a template."""
        tokens: list[int] = self._tokenizer.encode(text)
        return tokens

    def probe_inputs(self, tokens: list[int]) -> Inputs:
        """Return the language model's inputs for a text without images."""
        import mlx.core as mx

        with mx.stream(self.forward.stream):
            output = self._model.get_input_embeddings(mx.array([tokens]), None)
            mx.eval(output.inputs_embeds)
        return {key: value for key, value in output.to_dict().items() if value is not None}

    def probe_logits(self, tokens: list[int]) -> Any:
        """Return the logits of such tokens, read in one call."""
        import mlx.core as mx

        inputs = self.probe_inputs(tokens)
        with mx.stream(self.forward.stream):
            logits = self.forward.read_whole(mx.array([tokens]), inputs)[0]
            mx.eval(logits)
        return logits

    def sampling_params(self, sampling: Sampling) -> SamplingParams:
        """Return sampling parameters, with the checkpoint's as defaults."""
        if upstream.VISION_BATCHES.off is not None:
            return SamplingParams()  # not used: only batches sample with them
        temperature, top_p, top_k = upstream.VISION_BATCHES.names.resolve_sampling_defaults(
            self._model.config,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        seed = fresh_seed() if sampling.seed is None else sampling.seed
        min_p = sampling.min_p or 0.0
        return SamplingParams(float(temperature), float(top_p) or 1.0, int(top_k), min_p, seed)

    def reasoning(self, prompt: Prompt) -> ReasoningStream | None:
        """Return what separates the thoughts of an answer. See `ModelAdapter.reasoning`."""
        if not self._marks:
            return None
        # Some libraries use negative numbers for images.
        tail = [token for token in prompt.tokens[-TAIL_TOKENS:] if token >= 0]
        prompt_end = self._tokenizer.decode(tail, skip_special_tokens=False)
        return ReasoningStream(self._marks, prompt_end, self._skipped)

    @property
    def reasons(self) -> bool:
        """Whether the model may write thoughts before its answer."""
        return bool(self._marks)

    def answer_tokens(self, prompt: Prompt, labels: Sequence[str]) -> AnswerTokens:
        """Return the tokens of answers after a prompt. See `ModelAdapter`."""
        frame = prompt.frame or AnswerFrame("")
        tokens: AnswerTokens = self._inputs.answer_tokens(
            labels, frame, prompt.tokens, self.forward.is_stop_token
        )
        return tokens

    def detokenizer(self) -> _Detokenizer:
        """Return a new detokenizer."""
        names = upstream.VISION_BATCHES.names
        return _Detokenizer(names.make_streaming_detokenizer(self._processor), self._special)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return self._tokenizer

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end an answer, as far as mlx-vlm's test of a token lists them."""
        criteria = getattr(self._tokenizer, "stopping_criteria", None)
        known = getattr(criteria, "eos_token_ids", None)
        if known is None:
            known = getattr(self._tokenizer, "eos_token_id", None)
        listed = [known] if isinstance(known, int) else known or ()
        return frozenset(token for token in listed if isinstance(token, int))

    @contextlib.contextmanager
    def streaming(
        self,
        prompt: Prompt,
        active: ActiveRequest,
        caches: list[Any],
        processors: list[LogitsProcessor],
    ) -> Iterator[Iterator[Any]]:
        """Answer through mlx-vlm's own generation. See `ModelAdapter.streaming`."""
        from mlx_vlm import stream_generate

        sampling = active.request.sampling
        if sampling.seed is None:
            # Otherwise the answer would depend on an earlier request's seed.
            platform.fresh_seed()
        extra: dict[str, Any] = {
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "logits_processors": processors or None,
        }
        with (
            forward.cancellable_prefill(
                caches, active.cancel, active.report_prefill
            ) as remove_hooks,
            forward.replaced(
                self._model, "get_input_embeddings", self._reporting_embeddings(prompt, active)
            ),
            contextlib.closing(
                stream_generate(
                    self._model,
                    self._processor,
                    "",
                    **prompt.inputs,
                    **{key: value for key, value in extra.items() if value is not None},
                    **kv_cache.library_options(caches, active.request.kv_bits, self._shape),
                    max_tokens=sampling.max_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    seed=sampling.seed,
                    prefill_step_size=self._chunk,
                    skip_special_tokens=True,
                )
            ) as stream,
        ):
            yield _calling_after_first(stream, remove_hooks)

    def reset_counts(self) -> None:
        """Reset the counts of hits and misses."""
        self._caches.reset_counts()

    def forget(self) -> int:
        """Clear the caches of images and prompts; return the bytes that they held."""
        return self._caches.forget()

    def close(self) -> None:
        """Release the model."""
        self._model = self._processor = self._tokenizer = self._inputs = self._embedder = None
        self.forward.close()

    def _reporting_embeddings(self, prompt: Prompt, active: ActiveRequest) -> Any:
        """Wrap ``get_input_embeddings`` to report when vision ends and prefill begins."""
        import mlx.core as mx

        original = self._model.get_input_embeddings

        def get_input_embeddings(*args: Any, **kwargs: Any) -> Any:
            def embed() -> Any:
                output = original(*args, **kwargs)
                mx.eval(output.inputs_embeds)
                return output

            active.cancel.checkpoint()
            output = self._caches.encode(
                self._model, embed, active.vision_progress, prompt.image_keys
            )
            active.expand_image_tokens(int(output.inputs_embeds.shape[1]))
            active.cancel.checkpoint()
            active.report_prefill()
            return output

        return get_input_embeddings


def _calling_after_first(stream: Iterator[Any], call: Any) -> Iterator[Any]:
    for count, response in enumerate(stream):
        if count == 0:
            call()
        yield response
