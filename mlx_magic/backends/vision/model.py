"""Vision models, through mlx-vlm."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from mlx_magic.backends import warmup
from mlx_magic.backends.base import LoadProgress, Report
from mlx_magic.backends.batch_check.compare_rows import Budget
from mlx_magic.backends.batch_check.policy import batch_policy
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.active_request import ActiveRequest, TokenCounts
from mlx_magic.backends.batching.admission import MemoryAdmission
from mlx_magic.backends.batching.batch import NextToken, Slot
from mlx_magic.backends.batching.memory_estimate import ModelDimensions
from mlx_magic.backends.batching.sampling import (
    RowSampler,
    SamplingParams,
    fresh_seed,
    processors,
    require_number,
)
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.chat_templates import chat_messages
from mlx_magic.backends.device import platform
from mlx_magic.backends.dispatch import Dispatch
from mlx_magic.backends.loading import fast_modules, materialize
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.backends.prefix_cache.fingerprints import as_numpy
from mlx_magic.backends.prefix_cache.image_keys import ImageKeys
from mlx_magic.backends.vision import cpu_encoders
from mlx_magic.backends.vision import inputs as vision_inputs
from mlx_magic.backends.vision import load as vision_load
from mlx_magic.backends.vision.batch import VisionBatch
from mlx_magic.backends.vision.caches import CachedPrefix, VisionCaches
from mlx_magic.backends.vision.embeddings import Embedder
from mlx_magic.backends.vision.image_cache.prefetch import Prefetch
from mlx_magic.backends.vision.image_sizes import seen_sizes
from mlx_magic.backends.vision.inputs import VisionInputs
from mlx_magic.backends.vision.row_probe import VisionProbe
from mlx_magic.backends.vision.sequential import SequentialAnswers
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import FinishReason, GenerationChunk
from mlx_magic.engine.stop_sequences import Stopped
from mlx_magic.errors import GenerationError
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

if TYPE_CHECKING:
    from mlx_magic.engine.engine import Steps


class VisionBackend:
    """Loads vision models with mlx-vlm."""

    library = "mlx-vlm"

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
    ) -> Generator[None, None, VisionModel]:
        """Load a vision model in slices. See `Backend.load`."""
        began = time.monotonic()
        platform.prepare()
        progress(0, 0, "loading: importing mlx-vlm")
        yield
        cancel.checkpoint()
        import mlx_vlm  # noqa: F401 - a slice of its own, since the import takes long

        progress(0, checkpoint.weight_bytes, "loading: reading the checkpoint")
        yield
        cancel.checkpoint()
        origins = Origins()
        model, making = yield from vision_load.opened(
            checkpoint, trust_remote_code=trust_remote_code, cancel=cancel, origins=origins
        )
        yield
        size, processor = yield from materialize.materialize(
            model, cancel=cancel, progress=progress, origins=origins, beside=making
        )
        fast_modules.speed_up(model.language_model)
        if not platform.has_vector_math():
            cpu_encoders.use_numpy_exponentials(model)
        return VisionModel(checkpoint, model, processor, size, began=began)


class VisionModel:
    """A loaded vision model. See `LoadedModel`.

    Parameters
    ----------
    checkpoint : Checkpoint
    model, processor : object
        As mlx-vlm loads them.
    nbytes : int
        Bytes of the weights.
    began : float, optional
        Start of the load, in seconds of `time.monotonic`; now by default.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Any,
        processor: Any,
        nbytes: int,
        *,
        began: float | None = None,
    ) -> None:
        from mlx_vlm.models.cache import KVCache, make_prompt_cache

        self._name = checkpoint.name
        self._model = model
        self._processor = processor
        self._vision_inputs: VisionInputs | None = VisionInputs(self._name, model.config, processor)
        self._nbytes = nbytes
        self._began = time.monotonic() if began is None else began
        tokenizer = getattr(processor, "tokenizer", processor)
        self._special = set(getattr(tokenizer, "all_special_ids", None) or ())
        self._shape = ModelDimensions.of(checkpoint.config)
        self._at_once = platform.read_at_once(self._shape.vocabulary)
        caches = make_prompt_cache(model.language_model)
        policy = batch_policy("mlx-vlm", checkpoint, model.language_model, model.config, caches)
        self._chunk = policy.chunk(nbytes)
        probe = VisionProbe(model, processor, lambda w: self._new_batch(2, sampler=w))
        self._answering = Dispatch(policy, probe, self._new_batch, self._caches)
        together = self._answering.batch is not None
        plain = all(type(cache) is KVCache for cache in caches)
        self._vision_caches = VisionCaches(model, nbytes, prompts=together and plain)
        self._embedder: Embedder | None = Embedder(model, self._vision_caches)
        self._sequential = SequentialAnswers(model, processor, self._vision_caches, self._chunk)
        self._admission = MemoryAdmission(
            self._name,
            checkpoint.config,
            chunk=self._chunk,
            at_once=self._at_once if together else 0,
            forget=self._vision_caches.forget,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self._nbytes

    @property
    def reuse(self) -> CacheStats:
        """Statistics of the caches; safe from any thread."""
        return self._vision_caches.counts

    @property
    def prefetch(self) -> Prefetch:
        """Prefetch of a request's images. See `LoadedModel.prefetch`."""
        return self._vision_caches.processor_cache.prefetch

    @property
    def together(self) -> Verdict:
        """Whether requests are batched. See `LoadedModel.together`."""
        return self._answering.policy.verdict

    def forget(self) -> int:
        """Clear the caches of images and prompts; return the bytes that they held."""
        return self._vision_caches.forget()

    def close(self) -> None:
        """Release the weights and the caches."""
        self._vision_caches.forget()
        self._answering.close()
        with platform.freeing(self._nbytes):
            self._model = self._processor = self._vision_inputs = self._embedder = None
            self._sequential.close()

    def warm_up(self, *, cancel: CancelToken, progress: LoadProgress) -> Steps:
        """Run a dummy request to compile kernels. See `LoadedModel.warm_up`."""
        request = warmup.sample(self._name, image=True)
        yield from warmup.warmed(self, request, self._inputs, cancel=cancel, progress=progress)
        budget = Budget.of_load(time.monotonic() - self._began)
        yield from self._answering.compare_weights(budget, cancel)
        self._vision_caches.reset_counts()

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[None, None, FinishReason]:
        """Answer one request. See `LoadedModel.generate`."""
        platform.reset_peak()
        report(GenerationChunk("vision" if chat_messages.images(request) else "prefill"))
        kv_cache.require_bits(request.kv_bits, self._admission.shape, self._name)
        inputs = yield from self._answering.make_prompt_in_order(
            self._inputs(request, cancel), cancel
        )
        counts = TokenCounts(
            prompt_tokens=int(inputs["input_ids"].size),
            image_tokens=vision_inputs.image_tokens(inputs, self._model.config),
            images=len(chat_messages.images(request)),
        )
        admitted = yield from self._admission.reserve(
            self._answering.limits(request.kv_bits),
            prompt_tokens=counts.prompt_tokens,
            image_tokens=counts.image_tokens,
            max_tokens=request.sampling.max_tokens,
            kv_bits=request.kv_bits,
            cancel=cancel,
            on_wait=lambda: report(counts.chunk("queued")),
        )
        keyed = self._vision_caches.processor_cache.keyed(chat_messages.images(request), inputs)
        with admitted as reservation, keyed as image_keys:
            self._report_sizes(request, inputs, report)
            active = ActiveRequest(request, counts, reservation, cancel, report)
            return (
                yield from self._answering.answer(
                    active,
                    lambda: self._sequential(
                        inputs, image_keys, active, partial(self._caches, request.kv_bits)
                    ),
                    partial(
                        self._batched,
                        inputs,
                        image_keys,
                        active,
                        self._sampling_params(active.sampling),
                    ),
                )
            )

    def _new_batch(
        self,
        most: int,
        make_cache: Callable[[], list[Any]] | None = None,
        sampler: RowSampler | None = None,
    ) -> VisionBatch:
        return VisionBatch(
            self._model.language_model,
            self._processor,
            chunk=self._chunk,
            most=most,
            at_once=self._at_once,
            make_cache=make_cache,
            sampler=sampler,
        )

    def _caches(self, kv_bits: int | None) -> list[Any]:
        from mlx_vlm.models.cache import make_prompt_cache

        caches = make_prompt_cache(self._model.language_model)
        return kv_cache.quantized(caches, kv_bits, self._admission.shape, self._name)

    def _inputs(
        self, request: GenerationRequest, cancel: CancelToken
    ) -> Generator[None, None, dict[str, Any]]:
        """Make the model's inputs; the chat template renders on a background thread."""
        assert self._vision_inputs is not None
        making = self._vision_inputs.prompt(request, cancel)
        yield
        prompt = yield from making.result(cancel)
        with self._vision_caches.processor_cache.intercepting(
            self._processor, chat_messages.images(request)
        ):
            return self._vision_inputs.make_inputs(prompt)

    def _report_sizes(
        self, request: GenerationRequest, inputs: dict[str, Any], report: Report
    ) -> None:
        images = chat_messages.images(request)
        if images:
            patch = getattr(getattr(self._model.config, "vision_config", None), "patch_size", 14)
            seen = seen_sizes(inputs, len(images), patch)
            # The sizes of earlier turns were reported with these turns.
            own = seen[len(images) - len(request.images) :] if seen else seen
            report(GenerationChunk("vision", seen=own))

    def _batched(
        self,
        inputs: dict[str, Any],
        image_keys: ImageKeys | None,
        active: ActiveRequest,
        params: SamplingParams,
        batch: VisionBatch,
        answer: list[int],
    ) -> Generator[None, None, FinishReason]:
        """Answer in a batch; append the tokens to `answer`, which holds those of a failed try."""
        assert self._embedder is not None
        reported = list(answer)
        answer.clear()
        # The prefix cache is not quantized, so that quantized requests do not use it.
        start = (
            self._vision_caches.start(inputs, image_keys)
            if batch is self._answering.batch
            else CachedPrefix()
        )
        embeds = self._embedder.embeds(inputs, image_keys, start, active)
        active.report_prefill()
        yield
        tokens = active.counts.pad_tokens(as_numpy(inputs["input_ids"]).reshape(-1).tolist())
        slot = batch.add(
            tokens[start.count :],
            embeds,
            max_tokens=active.sampling.max_tokens,
            params=params,
            cache=start.caches(),
            keep_from=None if start.prompt_keys is None else start.count,
            processors=processors(active.sampling, len(tokens) - start.count),
        )
        del embeds
        try:
            reason = yield from self._stream_answer(batch, slot, answer, active, reported)
            # Not before: a cancelled or failed answer must not be cached.
            self._vision_caches.keep(start, answer, batch.row(slot))
            return reason
        except Stopped:
            # Ended by a stop sequence: what was computed so far is valid.
            self._vision_caches.keep_partial(start, answer, batch.row(slot))
            raise
        finally:
            batch.leave(slot)

    def _stream_answer(
        self,
        batch: VisionBatch,
        slot: Slot,
        answer: list[int],
        active: ActiveRequest,
        reported: list[int],
    ) -> Generator[None, None, FinishReason]:
        """Report a slot's progress until its answer has ended; append its tokens to `answer`.

        Tokens in `reported` are not reported again.
        """
        from mlx_vlm.tokenizer_utils import make_streaming_detokenizer

        detokenizer = make_streaming_detokenizer(self._processor)
        read = 0
        while True:
            next_token = yield from batch.follow(slot, active.cancel)
            if slot.read != read and not answer:
                read = slot.read
                active.report_prefill(read)
            if next_token is None:
                continue
            answer.append(next_token.token)
            reason = self._detokenize(next_token, detokenizer, len(answer), active.sampling)
            segment = detokenizer.last_segment
            if len(answer) > len(reported):
                active.report_text(segment, len(answer))
            elif answer[-1] != reported[len(answer) - 1]:
                raise GenerationError(
                    f"{self._name}: a step of its batch failed, and the answer could not be "
                    "continued: ask again.",
                    model=self._name,
                )
            if reason is not None:
                return reason

    def _detokenize(
        self, next_token: NextToken, detokenizer: Any, count: int, sampling: Sampling
    ) -> FinishReason | None:
        """Detokenize a token; return the finish reason if the answer ends with it."""
        require_number(next_token.token, self._name)
        if not next_token.stopped:
            detokenizer.add_token(next_token.token, skip_special_token_ids=self._special)
            if count < sampling.max_tokens:
                return None
        detokenizer.finalize()
        return "stop" if next_token.stopped else "length"

    def _sampling_params(self, sampling: Sampling) -> SamplingParams:
        """Return the sampling parameters of a request, with the checkpoint's as defaults."""
        from mlx_vlm.generate.common import resolve_sampling_defaults

        temperature, top_p, top_k = resolve_sampling_defaults(
            self._model.config,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        seed = fresh_seed() if sampling.seed is None else sampling.seed
        min_p = sampling.min_p or 0.0
        return SamplingParams(float(temperature), float(top_p) or 1.0, int(top_k), min_p, seed)
