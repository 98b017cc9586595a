"""A loaded model of either library: from a request to its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlx_magic.backends import warmup
from mlx_magic.backends.adapter import AdapterKind, Detokenizer, ModelAdapter, Prompt
from mlx_magic.backends.base import LoadProgress, PrefetchFunction, Report
from mlx_magic.backends.batch_check.compare_rows import Budget, ModelProbe
from mlx_magic.backends.batch_check.policy import BatchPolicy, batch_policy
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.batching.admission import MemoryAdmission
from mlx_magic.backends.batching.batch import JointPrefill, NextToken, Slot
from mlx_magic.backends.batching.decode import Sampler, sample_slots
from mlx_magic.backends.batching.model_batch import ModelBatch
from mlx_magic.backends.batching.sampling import SamplingParams, processors, require_number
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.chat_templates import chat_messages
from mlx_magic.backends.chat_templates.answer_start import AnswerStart
from mlx_magic.backends.device import platform
from mlx_magic.backends.dispatch import Dispatch
from mlx_magic.backends.grammars.compiled import Grammars
from mlx_magic.backends.grammars.mask import logits_processor
from mlx_magic.backends.grammars.matcher import GrammarMatcher
from mlx_magic.backends.prefix_cache.prompt_cache import CachedPrefix
from mlx_magic.backends.scoring.choosing import ChoiceModel
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import FinishReason, GenerationChunk
from mlx_magic.engine.stop_sequences import Stopped
from mlx_magic.errors import ContextLengthError, GenerationError
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.checkpoints.config_limits import context_length

if TYPE_CHECKING:
    from mlx_magic.engine.engine import Steps


MANY_IMAGE_TOKENS = 4_000
"""Image tokens from which on the view says what they cost: reading them takes seconds on a GPU,
and minutes on a CPU."""

PIXELS = (4_000_000, 2_000_000, 1_000_000, 500_000, 250_000, 100_000)
"""Values of ``--max-pixels`` that are suggested, the largest that helps."""


class LibraryModel:
    """A model that mlx-vlm or mlx-lm has loaded. See `LoadedModel`.

    Parameters
    ----------
    checkpoint : Checkpoint
    adapter : ModelAdapter
        What differs between the libraries.
    policy : BatchPolicy
    nbytes : int
        Bytes of the weights.
    began : float, optional
        Start of the load, in seconds of `time.monotonic`; now by default.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        adapter: ModelAdapter,
        policy: BatchPolicy,
        nbytes: int,
        *,
        began: float | None = None,
    ) -> None:
        self._name = checkpoint.name
        self._adapter = adapter
        self._nbytes = nbytes
        self._context = context_length(checkpoint.config)
        self._began = time.monotonic() if began is None else began
        self._policy = policy
        self._chunk = policy.chunk(nbytes)
        self._grammars = Grammars(
            lambda: adapter.tokenizer, lambda: adapter.stop_tokens, checkpoint.name
        )
        probe = ModelProbe(
            adapter, lambda recorder, joint: self._new_batch(2, sampler=recorder, joint=joint)
        )
        self._answering = Dispatch(policy, probe, self._new_batch, self._caches)
        self._admission = MemoryAdmission(
            self._name,
            checkpoint.config,
            chunk=self._chunk,
            at_once=adapter.joint_tokens if self._answering.batch is not None else 0,
            forget=adapter.forget,
        )
        self._choosing = ChoiceModel(
            self._name,
            adapter,
            self._answering,
            self._admission,
            chunk=self._chunk,
            new_caches=self._caches,
            fit_context=self._fit_context,
            hint=self._hint,
        )

    @classmethod
    def of(
        cls,
        adapter: AdapterKind,
        checkpoint: Checkpoint,
        model: Any,
        tokenizer: Any,
        nbytes: int,
        *,
        began: float | None = None,
    ) -> LibraryModel:
        """Return the loaded model of what a library has loaded.

        Parameters
        ----------
        adapter : AdapterKind
            The library's adapter.
        checkpoint : Checkpoint
        model, tokenizer : object
            As the library loads them; the processor for a vision model.
        nbytes : int
            Bytes of the weights.
        began : float, optional
            Start of the load, in seconds of `time.monotonic`.
        """
        language_model, config = adapter.language_model(model, tokenizer)
        caches = kv_cache.made(adapter.caches, language_model)
        policy = batch_policy(adapter.library, checkpoint, language_model, config, caches)
        made = adapter(
            checkpoint,
            model,
            tokenizer,
            kind=policy.cache_kind(caches),
            chunk=policy.chunk(nbytes),
            nbytes=nbytes,
        )
        return cls(checkpoint, made, policy, nbytes, began=began)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self._nbytes

    @property
    def reuse(self) -> CacheStats:
        """Statistics of the caches; safe from any thread."""
        return self._adapter.stats

    @property
    def prefetch(self) -> PrefetchFunction | None:
        """Prefetch of a request. See `LoadedModel.prefetch`."""
        return self._adapter.prefetch

    @property
    def together(self) -> Verdict:
        """Whether requests are batched. See `LoadedModel.together`."""
        return self._answering.policy.verdict

    def forget(self) -> int:
        """Clear the caches; return the bytes that they held."""
        return self._adapter.forget()

    def close(self) -> None:
        """Release the weights and the caches."""
        self._adapter.forget()
        self._grammars.clear()
        self._answering.close()
        self._choosing.close()
        with platform.freeing(self._nbytes):
            self._adapter.close()

    def warm_up(self, *, cancel: CancelToken, progress: LoadProgress) -> Steps:
        """Run a dummy request to compile kernels. See `LoadedModel.warm_up`."""
        request = warmup.sample(self._name, image=self._adapter.sees_images)
        yield from warmup.warmed(
            self, request, self._adapter.prompt, cancel=cancel, progress=progress
        )
        budget = Budget.of_load(time.monotonic() - self._began)
        yield from self._answering.compare_weights(budget, cancel)
        self._adapter.reset_counts()

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[None, None, FinishReason]:
        """Answer one request. See `LoadedModel.generate`."""
        platform.reset_peak()
        if request.choices is not None:
            return (yield from self._choosing.choose(request, cancel, report))
        adapter = self._adapter
        active = ActiveRequest(request, cancel, report, images=len(chat_messages.images(request)))
        report(GenerationChunk("vision" if active.images else "prefill"))
        kv_cache.require_bits(request.kv_bits, self._admission.shape, self._name)
        if request.schema is not None:
            # Before the prompt: what fails here fails before anything is computed.
            active.grammar = yield from self._grammars.compile(request.schema.grammar, cancel)
        prompt = yield from self._answering.make_prompt_in_order(
            adapter.prompt(request, cancel), cancel
        )
        active.prompt_tokens, active.image_tokens = len(prompt.tokens), prompt.image_tokens
        self._fit_context(active, prompt)
        admitted = yield from self._admission.reserve(
            self._answering.limits(request.kv_bits),
            prompt_tokens=active.prompt_tokens,
            image_tokens=active.image_tokens,
            max_tokens=active.request.sampling.max_tokens,
            kv_bits=request.kv_bits,
            cancel=cancel,
            on_wait=active.report_queued,
        )
        with admitted as active.reservation, adapter.keyed(request, prompt):
            seen = adapter.seen_sizes(request, prompt)
            if seen is not None:
                grounding = adapter.grounding(request, prompt)
                hint = self._hint(prompt)
                report(GenerationChunk("vision", seen=seen, hint=hint, grounding=grounding))
            params = adapter.sampling_params(active.request.sampling)
            active.reasoning = adapter.reasoning(prompt)
            active.marked = adapter.marked
            if active.reasoning is not None and request.schema is not None:
                active.reasoning.expect_no_thoughts_after_text()
            try:
                reason = yield from self._answering.answer(
                    active,
                    lambda: self._sequential(prompt, active),
                    partial(self._batched, prompt, active, params),
                )
            except Cancelled:
                active.report_rest()
                raise
            except Stopped:
                active.report_marked()
                raise
            active.report_rest()
            return reason

    def _fit_context(self, active: ActiveRequest, prompt: Prompt, least: int = 1) -> None:
        """Limit the answer to what the model's context leaves.

        Parameters
        ----------
        active : ActiveRequest
        prompt : Prompt
        least : int
            Tokens that must be left.

        Raises
        ------
        ContextLengthError
            The prompt alone is too long: what a model writes then is of no use.
        """
        if self._context is None:
            return
        left = self._context - active.prompt_tokens
        if left < least:
            raise self._too_long(active, prompt, self._context)
        sampling = active.request.sampling
        if sampling.max_tokens > left:
            active.request = replace(active.request, sampling=replace(sampling, max_tokens=left))

    def _too_long(self, active: ActiveRequest, prompt: Prompt, limit: int) -> ContextLengthError:
        remedies = []
        if active.image_tokens:
            # A quarter less than what fits, for the answer.
            most = (active.image_tokens - (active.prompt_tokens - limit)) * 3 // 4
            fewer = self._fewer_pixels(prompt, most)
            remedies = [f"--max-pixels {fewer[0]}"] if fewer else []
            remedies += ["fewer images"] if active.images > 1 else []
        if active.image_tokens < active.prompt_tokens // 2 or not remedies:
            remedies.append("a shorter prompt" if not active.request.history else "a new chat")
        return ContextLengthError(
            f"{self._name}: the prompt has {active.prompt_tokens:,} tokens "
            f"({active.image_tokens:,} of images) and the answer up to "
            f"{active.request.sampling.max_tokens:,}, but the model's context is {limit:,}: "
            f"{' or '.join(remedies)} would help.",
            model=self._name,
            needed_tokens=active.prompt_tokens,
            image_tokens=active.image_tokens,
            limit_tokens=limit,
        )

    def _fewer_pixels(self, prompt: Prompt, most: int) -> tuple[int, int] | None:
        """Return pixels for which images take at most `most` tokens, and the tokens they take."""
        for pixels in PIXELS:
            tokens = self._adapter.fewer_image_tokens(prompt, pixels)
            if tokens is not None and tokens <= most:
                return pixels, tokens
        return None

    def _hint(self, prompt: Prompt) -> str:
        """Return a line about the cost of many image tokens, and what would save most of it."""
        if prompt.image_tokens < MANY_IMAGE_TOKENS:
            return ""
        many = f"{prompt.image_tokens:,} image tokens"
        fewer = self._fewer_pixels(prompt, prompt.image_tokens // 2)
        return f"{many}; --max-pixels {fewer[0]} takes {fewer[1]:,}" if fewer else many

    def _new_batch(
        self,
        most: int,
        make_caches: Callable[[], list[Any]] | None = None,
        sampler: Sampler = sample_slots,
        joint: JointPrefill | None = None,
    ) -> ModelBatch:
        policy = self._policy
        return ModelBatch(
            self._adapter.forward,
            chunk=self._chunk,
            most=most,
            joint_tokens=self._adapter.joint_tokens,
            joint_prefill=lambda: policy.joint_prefill if joint is None else joint,
            make_caches=make_caches,
            sampler=sampler,
        )

    def _caches(self, kv_bits: int | None) -> list[Any]:
        return kv_cache.quantized(
            self._adapter.forward.new_caches(), kv_bits, self._admission.shape, self._name
        )

    def _batched(
        self,
        prompt: Prompt,
        active: ActiveRequest,
        params: SamplingParams,
        batch: ModelBatch,
        answer: list[int],
    ) -> Generator[None, None, FinishReason]:
        """Answer in a batch; append the tokens to `answer`, which holds those of a failed try."""
        adapter, reported = self._adapter, list(answer)
        answer.clear()
        # The prefix cache is not quantized, so that quantized requests do not use it.
        shared = batch is self._answering.batch
        start = adapter.start(prompt) if shared else CachedPrefix()
        if shared and prompt.image_tokens:
            with adapter.waiting(prompt, start):
                # Requests that arrive together share a call of the vision encoder.
                yield
                active.cancel.checkpoint()
                inputs = adapter.embed(prompt, start, active)
        else:
            inputs = adapter.embed(prompt, start, active)
        active.cached_tokens = start.count
        active.report_prefill()
        yield
        slot = batch.add(
            active.pad_tokens(prompt.tokens)[start.count :],
            params,
            inputs=inputs,
            cache=start.caches(adapter.forward.new_caches),
            processors=processors(active.request.sampling),
            background=active.request.background,
            matcher=self._matcher(prompt, active),
            checkpoint_at=self._checkpoint(prompt, start, active),
            on_checkpoint=lambda caches: adapter.prompt_cache.keep_state(
                start, prompt.image_end, [], caches
            ),
        )
        del inputs
        try:
            try:
                reason = yield from self._stream_answer(batch, slot, answer, active, reported)
            except Stopped:
                # Ended by a stop sequence: what was computed so far is valid.
                self._keep(start, answer, batch, slot)
                raise
            # Not before: a cancelled or failed answer must not be cached.
            self._keep(start, answer, batch, slot)
            return reason
        finally:
            batch.leave(slot)

    def _matcher(self, prompt: Prompt, active: ActiveRequest) -> GrammarMatcher | None:
        """Return what follows the answer in the grammar of its schema; None without one."""
        if active.grammar is None:
            return None
        stream = self._adapter.reasoning(prompt)
        if stream is None:
            return active.grammar.start()
        stream.expect_no_thoughts_after_text()
        thoughts = AnswerStart(stream, self._adapter.detokenizer(), self._encode)
        return active.grammar.start(thoughts)

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._adapter.tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def _checkpoint(self, prompt: Prompt, start: CachedPrefix, active: ActiveRequest) -> int:
        """Return where the state of the caches is worth keeping: at the end of the last image."""
        known = start.prompt_keys is not None and len(prompt.tokens) == active.prompt_tokens
        if not self._adapter.prompt_cache.takes_states or not known:
            return 0
        return max(prompt.image_end - start.count, 0)

    def _keep(self, start: CachedPrefix, answer: list[int], batch: ModelBatch, slot: Slot) -> None:
        """Let the prefix cache keep a prompt and its answer."""
        cache = self._adapter.prompt_cache
        if not cache.takes_states:
            cache.keep(start, answer, batch.row(slot, start.count))
        elif start.prompt_keys is not None:
            read = answer[: max(slot.position - 1, 0)]
            cache.keep_state(start, len(start.prompt_keys.keys), read, batch.state(slot))

    def _stream_answer(
        self,
        batch: ModelBatch,
        slot: Slot,
        answer: list[int],
        active: ActiveRequest,
        reported: list[int],
    ) -> Generator[None, None, FinishReason]:
        """Report a slot's progress until its answer has ended; append its tokens to `answer`.

        Tokens in `reported` are not reported again.
        """
        detokenizer = self._adapter.detokenizer()
        read = 0
        while True:
            next_token = yield from batch.follow(slot, active.cancel)
            if slot.read != read and not answer:
                read = slot.read
                active.report_prefill(read)
            if next_token is None:
                continue
            answer.append(next_token.token)
            reason = self._detokenize(next_token, detokenizer, len(answer), active.request.sampling)
            segment = detokenizer.last_segment
            if len(answer) > len(reported):
                active.report_text(segment, len(answer), next_token.token)
            elif answer[-1] != reported[len(answer) - 1]:
                raise GenerationError(
                    f"{self._name}: a step of its batch failed, and the answer could not be "
                    "continued: ask again.",
                    model=self._name,
                )
            if reason is not None:
                return reason

    def _detokenize(
        self, next_token: NextToken, detokenizer: Detokenizer, count: int, sampling: Sampling
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
        self, prompt: Prompt, active: ActiveRequest
    ) -> Generator[None, None, FinishReason]:
        """Answer through the library's own streaming, with exclusive use of the model."""
        caches = self._caches(active.request.kv_bits)
        matcher = self._matcher(prompt, active)
        masks = [] if matcher is None else [logits_processor(matcher)]
        with self._adapter.streaming(prompt, active, caches, masks) as stream:
            for response in stream:
                require_number(response.token, self._name)
                active.report_text(response.text, response.generation_tokens, int(response.token))
                if response.finish_reason is not None:
                    return "stop" if response.finish_reason == "stop" else "length"
                active.cancel.checkpoint()
                yield
        raise GenerationError(
            f"{self._name}: {self._adapter.library} ended without a finish reason.",
            model=self._name,
        )
