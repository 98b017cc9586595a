"""Batched requests to one vision model, with mlx-vlm's batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.admission_queue import BatchLimits
from mlx_magic.backends.batching.batch import MAX_PREFILL_BATCH, Batch, NextToken, Slot
from mlx_magic.backends.batching.sampling import (
    LogitsProcessor,
    RowSampler,
    SamplingParams,
    guarded,
)
from mlx_magic.backends.device import wired_memory
from mlx_magic.backends.prefix_cache.radix_tree import Rows, copied_rows, cut_out
from mlx_magic.backends.vision.prompts import VisionPrompt, extra_inputs, merged_caches, padded

_ENDLESS = 2**62


class VisionBatch(Batch):
    """Each step reads a prefill chunk and decodes a token of every running request.

    Parameters
    ----------
    language_model : module
    processor : object
        The processor or tokenizer; its tokenizer has the stop tokens.
    chunk : int
        Prompt tokens per prefill chunk.
    most : int
        Maximum number of requests in decode; the others wait.
    at_once : int
        Tokens of all rows that may be read in one call with the last token of a prompt. By
        default the last token has a call of its own, as in mlx-vlm. See `platform.read_at_once`.
    make_cache : callable, optional
        Makes the caches of a request, if they are not plain ones. Only with `most` 1: such caches
        cannot be merged.
    sampler : RowSampler, optional

    Attributes
    ----------
    limits : BatchLimits
        Limits of this batch, for memory admission.
    """

    def __init__(
        self,
        language_model: Any,
        processor: Any,
        *,
        chunk: int,
        most: int,
        at_once: int = 0,
        make_cache: Callable[[], list[Any]] | None = None,
        sampler: RowSampler | None = None,
    ) -> None:
        super().__init__()
        from mlx_vlm.generate.ar import GenerationBatch
        from mlx_vlm.generate.common import generation_stream
        from mlx_vlm.models.cache import make_prompt_cache

        assert make_cache is None or most == 1
        self._make_cache: Any = make_cache or partial(make_prompt_cache, language_model)
        self.limits = BatchLimits(most, min(most, MAX_PREFILL_BATCH), self._held)

        self._model = language_model
        tokenizer = getattr(processor, "tokenizer", processor)
        self._is_stop_token = tokenizer.stopping_criteria
        self._chunk = chunk
        self._most = most
        self._stream = generation_stream
        self._sampler = sampler or RowSampler()
        self._waiting: list[VisionPrompt] = []
        self._prompts: dict[int, VisionPrompt] = {}
        self._rows: dict[int, Rows] = {}
        self._prefill_batch: Any = None
        self._prefill_prompts: list[VisionPrompt] = []
        self._unread = 0
        self._max_joint_tokens, self._last_chunk = at_once, 0
        self._empty = GenerationBatch.empty
        self._decode_batch: Any = self._empty_batch()
        self._wired: contextlib.ExitStack | None = None

    def add(
        self,
        tokens: list[int],
        embeds: dict[str, Any],
        *,
        max_tokens: int,
        params: SamplingParams,
        cache: list[Any] | None = None,
        keep_from: int | None = None,
        processors: Sequence[LogitsProcessor] = (),
    ) -> Slot:
        """Add a request. For the parameters see `VisionPrompt`."""
        slot = self.take_slot()
        self._sampler.draws[slot.uid] = params
        prompt = VisionPrompt(slot, tokens, embeds, max_tokens, cache, keep_from)
        prompt.processors = [guarded(processor, slot.fail) for processor in processors]
        self._prompts[slot.uid] = prompt
        self._waiting.append(prompt)
        return slot

    def row(self, slot: Slot) -> Rows | None:
        """Return the keys and values of a request, per layer.

        They cover prompt and answer from ``keep_from`` on. Once the answer has ended they
        include its last token, and can be taken once.
        """
        prompt, decode = self._prompts.get(slot.uid), self._decode_batch
        if slot.uid not in decode.uids or prompt is None or prompt.keep_from is None:
            return self._rows.pop(slot.uid, None)
        at = decode.uids.index(slot.uid)
        return cut_out(decode.prompt_cache, [(at, prompt.keep_from)])[0]

    def close(self) -> None:
        """Release the model at once: the batch itself is part of a reference cycle."""
        self._model = self._make_cache = None
        self._end_all()

    def _held(self) -> int:
        prefill = self._prefill_batch.prompt_cache if self._prefill_batch is not None else []
        known = [cache for prompt in self._waiting for cache in prompt.cache or []]
        return kv_cache.caches_nbytes([*self._decode_batch.prompt_cache, *prefill, *known])

    def _empty_batch(self) -> Any:
        return self._empty(
            self._model,
            self._sampler,
            _never_stop,
            compute_logprobs=False,
            greedy_sampling=False,
        )

    def _step(self) -> None:
        import mlx.core as mx

        self._wire()
        with mx.stream(self._stream):
            if self._decode_batch.uids:
                self._decode_step()
            answers = None
            try:
                if (
                    self._prefill_batch is None
                    and self._waiting
                    and len(self._decode_batch.uids) < self._most
                ):
                    self._start_prefill()
                if self._prefill_batch is not None:
                    answers = self._prefill_step()
            except Exception as error:
                # A failed prefill does not affect the requests in decode.
                self._fail([prompt.slot for prompt in self._prefill_prompts], error)
                self._prefill_batch, self._prefill_prompts = None, []
            if answers is not None:
                self._join(answers)

    def _decode_step(self) -> None:
        """Decode a token of each request, and remove the requests that have ended."""
        batch = self._decode_batch
        self._sampler.rows = list(batch.uids)
        remaining, kept = [], []
        # mlx-vlm gets a stop test that never fires; otherwise it drops the row before its cache is
        # copied.
        for at, response in enumerate(batch.next()):
            prompt = self._prompts[response.uid]
            if prompt.begun:
                # The first token was handed out at the end of prefill.
                prompt.begun = False
            else:
                self._hand_out(prompt, int(response.token))
            if not prompt.ended:
                remaining.append(at)
            elif prompt.keep_from is not None:
                kept.append((at, prompt.keep_from))
        if kept:
            for (at, _), row in zip(kept, cut_out(batch.prompt_cache, kept), strict=True):
                self._rows[batch.uids[at]] = copied_rows(row)
        if len(remaining) < len(batch.uids):
            batch.filter(remaining)

    def _hand_out(self, prompt: VisionPrompt, token: int) -> None:
        """Hand out a token of an answer."""
        stopped = bool(self._is_stop_token(token))
        prompt.slot.give(NextToken(token, stopped))
        prompt.max_tokens -= 1
        prompt.ended = stopped or prompt.max_tokens <= 0

    def _start_prefill(self) -> None:
        from mlx_vlm.generate.ar import PromptProcessingBatch

        self._prefill_prompts = prompts = self._next_prompts()
        single = prompts[0] if len(prompts) == 1 else None
        if single:
            embeds, extra = single.embeds["inputs_embeds"], extra_inputs(single.embeds)
            caches, padding = single.cache or self._make_cache(), {}
        else:
            caches, padding = merged_caches(prompts) if prompts[0].cache else (None, {})
            rows = [prompt.embeds["inputs_embeds"] for prompt in prompts]
            embeds, extra = padded(rows, left=caches is None), {}
        self._prefill_batch = PromptProcessingBatch(
            self._model,
            [prompt.slot.uid for prompt in prompts],
            [prompt.tokens for prompt in prompts],
            [_ENDLESS] * len(prompts),
            embeds,
            extra,
            prefill_step_size=self._chunk,
            warm_cache=caches,
            logits_processors=[prompt.processors or None for prompt in prompts],
            **padding,
        )
        if single and extra:
            _pass_whole_inputs(self._prefill_batch)
        self._unread = max(len(prompt.tokens) for prompt in prompts)
        self._last_chunk = self._joint_tokens(prompts)
        for prompt in prompts:
            # Decode may take long: free what only prefill needed.
            prompt.embeds, prompt.cache = {}, None

    def _next_prompts(self) -> list[VisionPrompt]:
        """Take the prompt that has waited longest, and prompts that can share its prefill."""
        first = self._waiting[0]
        free_slots = min(MAX_PREFILL_BATCH, self._most - len(self._decode_batch.uids))
        chosen = [first]
        if first.plain:
            chosen += [p for p in self._waiting[1:] if p.compatible_with(first)][: free_slots - 1]
        self._waiting = [prompt for prompt in self._waiting if prompt not in chosen]
        return chosen

    def _prefill_step(self) -> Any:
        """Read a chunk; after the last one return the batch to decode, else None."""
        import mlx.core as mx

        batch = self._prefill_batch
        if batch.needs_processing() and self._unread > self._last_chunk:
            done = batch.prompt_step()
            # Without this, MLX would queue the next chunks before this one is done, and a cancel
            # would wait for all of them.
            mx.eval([cache.state for cache in batch.prompt_cache])
            for prompt in self._prefill_prompts:
                prompt.slot.read = min(prompt.slot.read + done, len(prompt.tokens))
            self._unread -= done
            if batch.needs_processing():
                return None
        self._sampler.rows = list(batch.uids)
        return batch.generate(self._sampler, _never_stop, compute_logprobs=False)

    def _joint_tokens(self, prompts: Sequence[VisionPrompt]) -> int:
        """Return how many last tokens of each prompt one call may read: up to a chunk plus one."""
        plain = all(prompt.plain for prompt in prompts)
        return min(self._max_joint_tokens // len(prompts), self._chunk + 1) if plain else 0

    def _join(self, answers: Any) -> None:
        """Add requests after their prefill to the decode batch, and hand out their first tokens."""
        self._prefill_batch = None
        for prompt, token in zip(self._prefill_prompts, self._sampler.drawn.tolist(), strict=True):
            prompt.slot.read = len(prompt.tokens)
            # mlx-vlm returns the first token only after it has started the second. A token that
            # ends the answer is left to that step, which computes its keys and values.
            if prompt.max_tokens > 1 and not self._is_stop_token(token):
                self._hand_out(prompt, token)
                prompt.begun = True
        self._prefill_prompts = []
        if self._decode_batch.uids:
            self._decode_batch.extend(answers)
        else:
            self._decode_batch = answers

    def _abandon(self) -> list[int]:
        self._prefill_batch, self._prefill_prompts = None, []
        self._decode_batch = self._empty_batch()
        waiting = {prompt.slot.uid for prompt in self._waiting}
        # Includes requests between prefill and decode.
        return [uid for uid in self._slots if uid not in waiting]

    def _drop(self, uid: int) -> None:
        import mlx.core as mx

        self._sampler.draws.pop(uid, None)
        self._prompts.pop(uid, None)
        self._rows.pop(uid, None)
        self._waiting = [prompt for prompt in self._waiting if prompt.slot.uid != uid]
        with mx.stream(self._stream):
            if self._prefill_batch is not None and uid in self._prefill_batch.uids:
                self._prefill_prompts = [p for p in self._prefill_prompts if p.slot.uid != uid]
                if self._prefill_prompts:
                    self._prefill_batch.remove(uid)
                else:
                    self._prefill_batch = None
            if uid in self._decode_batch.uids:
                uids = self._decode_batch.uids
                self._decode_batch.filter([at for at, other in enumerate(uids) if other != uid])
        if not self._slots:
            self._clear()

    def _clear(self) -> None:
        self._slots.clear()
        self._sampler.draws.clear()
        self._prompts.clear()
        self._rows.clear()
        self._waiting.clear()
        self._prefill_batch, self._prefill_prompts = None, []
        self._decode_batch = self._empty_batch()
        if self._wired is not None:
            self._wired.close()
            self._wired = None

    def _wire(self) -> None:
        """Wire the weights while there are requests, if the platform has a wired limit."""
        if self._wired is None:
            from mlx_vlm.generate.common import wired_limit

            self._wired = contextlib.ExitStack()
            self._wired.enter_context(
                wired_memory.SHARED.held(wired_limit(self._model, [self._stream]))
            )


def _pass_whole_inputs(prefill: Any) -> None:
    """Give the model each input of the prompt uncut, as mlx-vlm's `stream_generate` does.

    mlx-vlm's batch cuts masks to each chunk, but not the features that the masks select: from
    the second chunk on qwen3_vl would get the features of the first (mlx-vlm 0.7.10).
    """
    if prefill._prompt_length_aware_keys:
        prefill._prompt_length_aware_keys = []


def _never_stop(token: int) -> bool:
    return False
