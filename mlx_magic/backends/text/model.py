"""Text-only models, through mlx-lm."""

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
from mlx_magic.backends.batching.sampling import (
    RowSampler,
    SamplingParams,
    processors,
    require_number,
)
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.device import platform
from mlx_magic.backends.dispatch import Dispatch
from mlx_magic.backends.loading import fast_modules, lora_check, materialize
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.backends.text.batch import CountingSampler, TextBatch
from mlx_magic.backends.text.inputs import TextInputs
from mlx_magic.backends.text.prompt_cache import PromptCache
from mlx_magic.backends.text.row_probe import TextProbe
from mlx_magic.backends.text.sampling_defaults import generation_config, sampling_params
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import FinishReason, GenerationChunk
from mlx_magic.engine.stop_sequences import Stopped
from mlx_magic.errors import GenerationError
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

if TYPE_CHECKING:
    from mlx_magic.engine.engine import Steps


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
    ) -> Generator[None, None, TextModel]:
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
        return TextModel(checkpoint, model, tokenizer, size, began=began)


class TextModel:
    """A loaded text model. See `LoadedModel`.

    Parameters
    ----------
    checkpoint : Checkpoint
    model, tokenizer : object
        As mlx-lm loads them.
    nbytes : int
        Bytes of the weights.
    began : float, optional
        Start of the load, in seconds of `time.monotonic`; now by default.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Any,
        tokenizer: Any,
        nbytes: int,
        *,
        began: float | None = None,
    ) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self._name = checkpoint.name
        self._defaults = generation_config(checkpoint)
        self._model = model
        self._tokenizer = tokenizer
        self._inputs = TextInputs(tokenizer, self._name)
        self._nbytes = nbytes
        self._began = time.monotonic() if began is None else began
        args = getattr(model, "args", None)
        policy = batch_policy("mlx-lm", checkpoint, model, args, make_prompt_cache(model))
        self._chunk = policy.chunk(nbytes)
        probe = TextProbe(model, tokenizer, lambda w: self._new_batch(2, sampler=w))
        self._answering = Dispatch(policy, probe, self._new_batch, self._caches)
        batch = self._answering.batch
        self._prompt_cache = PromptCache(nbytes, plain=batch is not None and batch.plain)
        self._admission = MemoryAdmission(
            self._name, checkpoint.config, chunk=self._chunk, forget=self._prompt_cache.forget
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self._nbytes

    @property
    def reuse(self) -> CacheStats:
        """Statistics of the prefix cache; safe from any thread."""
        return self._prompt_cache.counts

    @property
    def prefetch(self) -> None:
        """None: text needs no prefetch. See `LoadedModel.prefetch`."""

    @property
    def together(self) -> Verdict:
        """Whether requests are batched. See `LoadedModel.together`."""
        return self._answering.policy.verdict

    def forget(self) -> int:
        """Clear the prefix cache; return the bytes that it held."""
        return self._prompt_cache.forget()

    def close(self) -> None:
        """Release the weights and the prefix cache."""
        self._prompt_cache.forget()
        self._answering.close()
        with platform.freeing(self._nbytes):
            self._model = self._tokenizer = None

    def warm_up(self, *, cancel: CancelToken, progress: LoadProgress) -> Steps:
        """Run a dummy request to compile kernels. See `LoadedModel.warm_up`."""
        request = warmup.sample(self._name, image=False)
        yield from warmup.warmed(self, request, self._prepared, cancel=cancel, progress=progress)
        budget = Budget.of_load(time.monotonic() - self._began)
        yield from self._answering.compare_weights(budget, cancel)
        self._prompt_cache.reset_counts()

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[None, None, FinishReason]:
        """Answer one request. See `LoadedModel.generate`."""
        platform.reset_peak()
        report(GenerationChunk("prefill"))
        kv_cache.require_bits(request.kv_bits, self._admission.shape, self._name)
        tokenizing = self._inputs.start_tokenizing(request, cancel)
        yield
        prompt = yield from self._answering.make_prompt_in_order(tokenizing.result(cancel), cancel)
        counts = TokenCounts(len(prompt), 0)
        admitted = yield from self._admission.reserve(
            self._answering.limits(request.kv_bits),
            prompt_tokens=len(prompt),
            image_tokens=0,
            max_tokens=request.sampling.max_tokens,
            kv_bits=request.kv_bits,
            cancel=cancel,
            on_wait=lambda: report(counts.chunk("queued")),
        )
        with admitted as reservation:
            active = ActiveRequest(request, counts, reservation, cancel, report)
            params = sampling_params(active.sampling, self._defaults)
            return (
                yield from self._answering.answer(
                    active,
                    lambda: self._sequential(prompt, active),
                    partial(self._batched, prompt, active, params),
                )
            )

    def _prepared(
        self, request: GenerationRequest, cancel: CancelToken
    ) -> Generator[None, None, list[int]]:
        return (yield from self._inputs.start_tokenizing(request, cancel).result(cancel))

    def _new_batch(
        self,
        most: int,
        make_cache: Callable[[], list[Any]] | None = None,
        sampler: RowSampler | None = None,
    ) -> TextBatch:
        return TextBatch(
            self._model,
            self._tokenizer.eos_token_ids,
            chunk=self._chunk,
            most=most,
            make_cache=make_cache,
            sampler=sampler,
        )

    def _caches(self, kv_bits: int | None) -> list[Any]:
        from mlx_lm.models.cache import make_prompt_cache

        return kv_cache.quantized(
            make_prompt_cache(self._model), kv_bits, self._admission.shape, self._name
        )

    def _batched(
        self,
        prompt: list[int],
        active: ActiveRequest,
        params: SamplingParams,
        batch: TextBatch,
        answer: list[int],
    ) -> Generator[None, None, FinishReason]:
        """Answer in a batch; append the tokens to `answer`, which holds those of a failed try."""
        counts, cache = active.counts, None
        reported = list(answer)
        answer.clear()
        counts.cached_tokens = 0
        # The prefix cache is not quantized, so that quantized requests do not use it.
        cacheable = batch is self._answering.batch
        if cacheable:
            counts.cached_tokens, cache = self._prompt_cache.start(prompt)
        active.report_prefill()
        slot = batch.add(
            prompt[counts.cached_tokens :],
            params,
            cache=cache,
            # mlx-lm's batch passes the prompt's last token and the answer's tokens to a processor.
            processors=processors(active.sampling, 1),
        )
        # The batch owns the caches now, and they grow with the answer.
        del cache

        def keep() -> None:
            if cacheable:
                known = counts.cached_tokens
                self._prompt_cache.keep(prompt + answer, known, batch.row(slot, known))

        try:
            reason = yield from self._stream_answer(batch, slot, answer, active, reported)
            # Not before: a cancelled or failed answer must not be cached.
            keep()
            return reason
        except Stopped:
            # Ended by a stop sequence: what was computed so far is valid.
            keep()
            raise
        finally:
            batch.leave(slot)

    def _stream_answer(
        self,
        batch: TextBatch,
        slot: Slot,
        answer: list[int],
        active: ActiveRequest,
        reported: list[int],
    ) -> Generator[None, None, FinishReason]:
        """Report a slot's progress until its answer has ended; append its tokens to `answer`.

        Tokens in `reported` are not reported again.
        """
        # The property returns a new detokenizer each time.
        detokenizer = self._tokenizer.detokenizer
        read = 0
        while True:
            next_token = yield from batch.follow(slot, active.cancel)
            if next_token is None:
                if slot.read != read:
                    read = slot.read
                    active.report_prefill(read)
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
            detokenizer.add_token(next_token.token)
            if count < sampling.max_tokens:
                return None
        detokenizer.finalize()
        return "stop" if next_token.stopped else "length"

    def _sequential(
        self, prompt: list[int], active: ActiveRequest
    ) -> Generator[None, None, FinishReason]:
        """Answer through mlx-lm's own streaming, with exclusive use of the model."""
        stream = self._stream(prompt, active)
        try:
            for response in stream:
                require_number(response.token, self._name)
                active.report_text(response.text, response.generation_tokens)
                if response.finish_reason is not None:
                    return "stop" if response.finish_reason == "stop" else "length"
                active.cancel.checkpoint()
                yield
        finally:
            stream.close()
        raise GenerationError(
            f"{self._name}: mlx-lm ended without a finish reason.", model=self._name
        )

    def _stream(self, prompt: list[int], active: ActiveRequest) -> Any:
        """Start mlx-lm's generator of tokens."""
        from mlx_lm.generate import stream_generate

        def read(done: int, total: int) -> None:
            active.cancel.checkpoint()
            active.report_prefill(done)

        return stream_generate(
            self._model,
            self._tokenizer,
            prompt,
            max_tokens=active.sampling.max_tokens,
            sampler=CountingSampler.alone(sampling_params(active.sampling, self._defaults)),
            logits_processors=processors(active.sampling, len(prompt)),
            prompt_cache=self._caches(active.request.kv_bits),
            prefill_step_size=self._chunk,
            prompt_progress_callback=read,
        )
