"""Text-only models, through mlx-lm. It and `text_*` alone import it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from mlx_magic.backends import warmup
from mlx_magic.backends.base import LoadProgress, Report
from mlx_magic.backends.batch_check.compare_rows import Budget
from mlx_magic.backends.batch_check.policy import standing
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
from mlx_magic.backends.cache_stats import Reuse
from mlx_magic.backends.device import platform
from mlx_magic.backends.dispatch import Dispatch
from mlx_magic.backends.loading import fast_modules, lora_check, materialize
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.backends.text.batch import CountingSampler, TextBatch
from mlx_magic.backends.text.inputs import TextInputs
from mlx_magic.backends.text.prompt_cache import PromptCache
from mlx_magic.backends.text.row_probe import TextProbe
from mlx_magic.backends.text.sampling_defaults import draw, generation_config
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
        with origins.noted(utils):
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
        making = BackgroundCall(
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
            model, cancel=cancel, progress=progress, origins=origins, beside=making
        )
        fast_modules.lighten(model)
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
        When its load began, in seconds of `time.monotonic`; now if left out.
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
        stand = standing("mlx-lm", checkpoint, model, args, make_prompt_cache(model))
        self._chunk = stand.chunk(nbytes)
        probe = TextProbe(model, tokenizer, lambda w: self._new_batch(2, sampler=w))
        self._answering = Dispatch(stand, probe, self._new_batch, self._caches)
        batch = self._answering.batch
        self._recall = PromptCache(nbytes, plain=batch is not None and batch.plain)
        self._room = MemoryAdmission(
            self._name, checkpoint.config, chunk=self._chunk, forget=self._recall.forget
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self._nbytes

    @property
    def reuse(self) -> Reuse:
        """What was reused, and what is kept for it; safe from any thread."""
        return self._recall.counts

    @property
    def ahead(self) -> None:
        """Nothing: words are quick. See `LoadedModel.ahead`."""

    @property
    def together(self) -> Verdict:
        """Whether it answers several requests at once. See `LoadedModel.together`."""
        return self._answering.standing.verdict

    def forget(self) -> int:
        """Let go of all prompts that are kept; return their bytes."""
        return self._recall.forget()

    def close(self) -> None:
        """Let go of the weights, and of what is kept."""
        self._recall.forget()
        self._answering.close()
        with platform.freeing(self._nbytes):
            self._model = self._tokenizer = None

    def warm_up(self, *, cancel: CancelToken, progress: LoadProgress) -> Steps:
        """Answer a request of nobody's. See `LoadedModel.warm_up`."""
        request = warmup.sample(self._name, picture=False)
        yield from warmup.warmed(self, request, self._prepared, cancel=cancel, progress=progress)
        budget = Budget.of_load(time.monotonic() - self._began)
        yield from self._answering.look(budget, cancel)
        self._recall.count_anew()

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[None, None, FinishReason]:
        """Answer one request. See `LoadedModel.generate`."""
        platform.reset_peak()
        report(GenerationChunk("prefill"))
        kv_cache.require_bits(request.kv_bits, self._room.shape, self._name)
        making = self._inputs.made(request, cancel)
        yield
        prompt = yield from self._answering.in_order(making.result(cancel), cancel)
        counts = TokenCounts(len(prompt), 0)
        placed = yield from self._room.place(
            self._answering.table(request.kv_bits),
            prompt_tokens=len(prompt),
            image_tokens=0,
            max_tokens=request.sampling.max_tokens,
            kv_bits=request.kv_bits,
            cancel=cancel,
            waits=lambda: report(counts.chunk("queued")),
        )
        with placed as place:
            asked = ActiveRequest(request, counts, place, cancel, report)
            drawn = draw(asked.sampling, self._defaults)
            return (
                yield from self._answering.answer(
                    asked,
                    lambda: self._alone(prompt, asked),
                    partial(self._seated, prompt, asked, drawn),
                )
            )

    def _prepared(
        self, request: GenerationRequest, cancel: CancelToken
    ) -> Generator[None, None, list[int]]:
        return (yield from self._inputs.made(request, cancel).result(cancel))

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
            make_prompt_cache(self._model), kv_bits, self._room.shape, self._name
        )

    def _seated(
        self,
        prompt: list[int],
        asked: ActiveRequest,
        drawn: SamplingParams,
        batch: TextBatch,
        answer: list[int],
    ) -> Generator[None, None, FinishReason]:
        """Answer with a seat in a batch; `answer` takes the tokens, and has those told before."""
        counts, cache = asked.counts, None
        told = list(answer)
        answer.clear()
        counts.cached_tokens = 0
        # What was kept of other prompts is not quantized, and what is quantized is not kept.
        keeps = batch is self._answering.batch
        if keeps:
            counts.cached_tokens, cache = self._recall.start(prompt)
        asked.was_read()
        seat = batch.add(
            prompt[counts.cached_tokens :],
            drawn,
            cache=cache,
            # Its batch tells a processor of the prompt's last token, and of the answer's.
            processors=processors(asked.sampling, 1),
        )
        # They are the batch's now, and grow with the answer.
        del cache

        def keep() -> None:
            if keeps:
                known = counts.cached_tokens
                self._recall.keep(prompt + answer, known, batch.row(seat, known))

        try:
            reason = yield from self._follow(batch, seat, answer, asked, told)
            # Only now: of an answer that was cut short nothing may be kept.
            keep()
            return reason
        except Stopped:
            # Its reader has had enough; what was read and written is whole.
            keep()
            raise
        finally:
            batch.leave(seat)

    def _follow(
        self, batch: TextBatch, seat: Slot, answer: list[int], asked: ActiveRequest, told: list[int]
    ) -> Generator[None, None, FinishReason]:
        """Report what is read and written in a seat, to the end; `answer` takes the tokens.

        Those that were `told` before are not told again.
        """
        # The tokenizer gives each who asks a detokenizer of their own.
        words = self._tokenizer.detokenizer
        read = 0
        while True:
            written = yield from batch.follow(seat, asked.cancel)
            if written is None:
                if seat.read != read:
                    read = seat.read
                    asked.was_read(read)
                continue
            answer.append(written.token)
            reason = self._take(written, words, len(answer), asked.sampling)
            segment = words.last_segment
            if len(answer) > len(told):
                asked.wrote(segment, len(answer))
            elif answer[-1] != told[len(answer) - 1]:
                raise GenerationError(
                    f"{self._name}: a step of its batch failed, and the answer could not be "
                    "continued: ask again.",
                    model=self._name,
                )
            if reason is not None:
                return reason

    def _take(
        self, written: NextToken, words: Any, count: int, sampling: Sampling
    ) -> FinishReason | None:
        """Take in a token; say whether it ends the answer, and how."""
        require_number(written.token, self._name)
        if not written.stopped:
            words.add_token(written.token)
            if count < sampling.max_tokens:
                return None
        words.finalize()
        return "stop" if written.stopped else "length"

    def _alone(
        self, prompt: list[int], asked: ActiveRequest
    ) -> Generator[None, None, FinishReason]:
        """Answer through mlx-lm's own streaming; nothing else may use the model meanwhile."""
        stream = self._stream(prompt, asked)
        try:
            for piece in stream:
                require_number(piece.token, self._name)
                asked.wrote(piece.text, piece.generation_tokens)
                if piece.finish_reason is not None:
                    return "stop" if piece.finish_reason == "stop" else "length"
                asked.cancel.checkpoint()
                yield
        finally:
            stream.close()
        raise GenerationError(
            f"{self._name}: mlx-lm ended without a finish reason.", model=self._name
        )

    def _stream(self, prompt: list[int], asked: ActiveRequest) -> Any:
        """Let mlx-lm read the prompt and write, a token at a time."""
        from mlx_lm.generate import stream_generate

        def read(done: int, total: int) -> None:
            asked.cancel.checkpoint()
            asked.was_read(done)

        return stream_generate(
            self._model,
            self._tokenizer,
            prompt,
            max_tokens=asked.sampling.max_tokens,
            sampler=CountingSampler.alone(draw(asked.sampling, self._defaults)),
            logits_processors=processors(asked.sampling, len(prompt)),
            prompt_cache=self._caches(asked.request.kv_bits),
            prefill_step_size=self._chunk,
            prompt_progress_callback=read,
        )
