"""Questions to one vision model, answered together with mlx-vlm's batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.admission_queue import BatchLimits
from mlx_magic.backends.batching.batch import MOST_READ_TOGETHER, Batch, NextToken, Slot
from mlx_magic.backends.batching.greedy_decode import GreedyModel
from mlx_magic.backends.batching.sampling import (
    LogitsProcessor,
    RowSampler,
    SamplingParams,
    guarded,
)
from mlx_magic.backends.device import wired_memory
from mlx_magic.backends.prefix_cache.radix_tree import Rows, cut_out, owned
from mlx_magic.backends.vision.prompts import VisionPrompt, others, padded, warm

_ENDLESS = 2**62


class VisionBatch(Batch):
    """Reads prompts a chunk at a time, and writes a token of every answer at each step.

    Parameters
    ----------
    language_model : module
    processor : object
        Its tokenizer knows which tokens end an answer.
    chunk : int
        Prompt tokens that are read in one step.
    most : int
        Answers that are written at once; the others wait.
    at_once : int
        Tokens, of all rows, that are read together with the last one. Else that is read by
        itself, as by mlx-vlm. See `device.read_at_once`.
    make_cache : callable, optional
        Makes the caches of an answer, if not plain ones; with `most` 1 only: they cannot be
        put together.
    sampler : RowSampler, optional
        Draws the tokens.

    Attributes
    ----------
    table : BatchLimits
        What those who are answered together take.
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
        self.table = BatchLimits(most, min(most, MOST_READ_TOGETHER), self._held)

        self._model = language_model
        tokenizer = getattr(processor, "tokenizer", processor)
        self._ends = tokenizer.stopping_criteria
        self._chunk = chunk
        self._most = most
        self._stream = generation_stream
        self._sampler = sampler or RowSampler()
        self._writer: Any = GreedyModel(language_model, self._sampler)
        self._waiting: list[VisionPrompt] = []
        self._prompts: dict[int, VisionPrompt] = {}
        self._rows: dict[int, Rows] = {}
        self._reading: Any = None
        self._read_by: list[VisionPrompt] = []
        self._unread = 0
        self._most_at_once, self._short = at_once, 0
        self._empty = GenerationBatch.empty
        self._writing: Any = self._none()
        self._wired: contextlib.ExitStack | None = None

    def add(
        self,
        tokens: list[int],
        embeds: dict[str, Any],
        *,
        max_tokens: int,
        draw: SamplingParams,
        cache: list[Any] | None = None,
        keep_from: int | None = None,
        processors: Sequence[LogitsProcessor] = (),
    ) -> Slot:
        """Let a request in. See `VisionPrompt` for what is given."""
        seat = self.take_seat()
        self._sampler.draws[seat.uid] = draw
        prompt = VisionPrompt(seat, tokens, embeds, max_tokens, cache, keep_from)
        prompt.processors = [guarded(processor, seat.fail) for processor in processors]
        self._prompts[seat.uid] = prompt
        self._waiting.append(prompt)
        return seat

    def row(self, seat: Slot) -> Rows | None:
        """Return keys and values of each layer for an answer.

        All tokens of the prompt and the answer from ``keep_from`` on, the last one included,
        where the answer has ended: they are forgotten then. Else as far as it has come.
        """
        prompt, writing = self._prompts.get(seat.uid), self._writing
        if seat.uid not in writing.uids or prompt is None or prompt.keep_from is None:
            return self._rows.pop(seat.uid, None)
        at = writing.uids.index(seat.uid)
        return cut_out(writing.prompt_cache, [(at, prompt.keep_from)])[0]

    def close(self) -> None:
        """Let go of the model at once: the batch itself is part of a cycle."""
        self._model = self._writer = self._make_cache = None
        self._end_all()

    def _held(self) -> int:
        reading = self._reading.prompt_cache if self._reading is not None else []
        known = [cache for prompt in self._waiting for cache in prompt.cache or []]
        return kv_cache.caches_nbytes([*self._writing.prompt_cache, *reading, *known])

    def _none(self) -> Any:
        return self._empty(
            self._writer, self._sampler, _never, compute_logprobs=False, greedy_sampling=False
        )

    def _step(self) -> None:
        import mlx.core as mx

        self._wire()
        with mx.stream(self._stream):
            if self._writing.uids:
                self._write()
            written = None
            try:
                if self._reading is None and self._waiting and len(self._writing.uids) < self._most:
                    self._begin_reading()
                if self._reading is not None:
                    written = self._read()
            except Exception as error:
                # What cannot be read is nothing to those who are being written.
                self._fail([prompt.seat for prompt in self._read_by], error)
                self._reading, self._read_by = None, []
            if written is not None:
                self._join(written)

    def _write(self) -> None:
        """Write a token of each answer; what has ended leaves."""
        batch = self._writing
        self._sampler.rows = list(batch.uids)
        plain = not any(self._prompts[uid].processors for uid in batch.uids)
        batch.greedy_sampling = plain and self._sampler.is_greedy(batch.uids)
        staying, kept = [], []
        # It is told that no answer ends: a row that has ended would be gone from it already.
        for at, response in enumerate(batch.next()):
            prompt = self._prompts[response.uid]
            if prompt.begun:
                # Its first token was handed out when its prompt had been read.
                prompt.begun = False
            else:
                self._take(prompt, int(response.token))
            if not prompt.ended:
                staying.append(at)
            elif prompt.keep_from is not None:
                kept.append((at, prompt.keep_from))
        if kept:
            for (at, _), row in zip(kept, cut_out(batch.prompt_cache, kept), strict=True):
                self._rows[batch.uids[at]] = owned(row)
        if len(staying) < len(batch.uids):
            batch.filter(staying)

    def _take(self, prompt: VisionPrompt, token: int) -> None:
        """Hand out a token of an answer."""
        stopped = bool(self._ends(token))
        prompt.seat.give(NextToken(token, stopped))
        prompt.max_tokens -= 1
        prompt.ended = stopped or prompt.max_tokens <= 0

    def _begin_reading(self) -> None:
        from mlx_vlm.generate.ar import PromptProcessingBatch

        self._read_by = prompts = self._next_prompts()
        alone = prompts[0] if len(prompts) == 1 else None
        if alone:
            embeds, more = alone.embeds["inputs_embeds"], others(alone.embeds)
            caches, right = alone.cache or self._make_cache(), {}
        else:
            caches, right = warm(prompts) if prompts[0].cache else (None, {})
            rows = [prompt.embeds["inputs_embeds"] for prompt in prompts]
            embeds, more = padded(rows, left=caches is None), {}
        self._reading = PromptProcessingBatch(
            self._writer,
            [prompt.seat.uid for prompt in prompts],
            [prompt.tokens for prompt in prompts],
            [_ENDLESS] * len(prompts),
            embeds,
            more,
            prefill_step_size=self._chunk,
            warm_cache=caches,
            logits_processors=[prompt.processors or None for prompt in prompts],
            **right,
        )
        if alone and more:
            _give_whole(self._reading)
        self._unread = max(len(prompt.tokens) for prompt in prompts)
        self._short = self._at_once(prompts)
        for prompt in prompts:
            # An answer may go on for long: what was needed to read its prompt need not.
            prompt.embeds, prompt.cache = {}, None

    def _next_prompts(self) -> list[VisionPrompt]:
        """Take the prompt that waits longest, and those beside which it can be read."""
        first = self._waiting[0]
        room = min(MOST_READ_TOGETHER, self._most - len(self._writing.uids))
        chosen = [first]
        if first.plain:
            chosen += [p for p in self._waiting[1:] if p.goes_with(first)][: room - 1]
        self._waiting = [prompt for prompt in self._waiting if prompt not in chosen]
        return chosen

    def _read(self) -> Any:
        """Read a chunk; after the last one return the answers, to be written from here on."""
        import mlx.core as mx

        batch = self._reading
        if batch.needs_processing() and self._unread > self._short:
            done = batch.prompt_step()
            # Else the next chunks would be begun before this one is done, and none could be
            # cancelled.
            mx.eval([cache.state for cache in batch.prompt_cache])
            for prompt in self._read_by:
                prompt.seat.read = min(prompt.seat.read + done, len(prompt.tokens))
            self._unread -= done
            if batch.needs_processing():
                return None
        self._sampler.rows = list(batch.uids)
        return batch.generate(self._sampler, _never, compute_logprobs=False)

    def _at_once(self, prompts: Sequence[VisionPrompt]) -> int:
        """Return how many tokens of each may be read in one go: a chunk at most, and the last."""
        plain = all(prompt.plain for prompt in prompts)
        return min(self._most_at_once // len(prompts), self._chunk + 1) if plain else 0

    def _join(self, written: Any) -> None:
        """Write new answers beside the others; their first tokens are there."""
        self._reading = None
        for prompt, token in zip(self._read_by, self._sampler.drawn.tolist(), strict=True):
            prompt.seat.read = len(prompt.tokens)
            # The step that would give it begins the second one first. One that ends the answer
            # waits for that: its keys and values come then.
            if prompt.max_tokens > 1 and not self._ends(token):
                self._take(prompt, token)
                prompt.begun = True
        self._read_by = []
        if self._writing.uids:
            self._writing.extend(written)
        else:
            self._writing = written

    def _abandon(self) -> list[int]:
        self._reading, self._read_by = None, []
        self._writing = self._none()
        waiting = {prompt.seat.uid for prompt in self._waiting}
        # Those too who were between reading and writing.
        return [uid for uid in self._seats if uid not in waiting]

    def _drop(self, uid: int) -> None:
        import mlx.core as mx

        self._sampler.draws.pop(uid, None)
        self._prompts.pop(uid, None)
        self._rows.pop(uid, None)
        self._waiting = [prompt for prompt in self._waiting if prompt.seat.uid != uid]
        with mx.stream(self._stream):
            if self._reading is not None and uid in self._reading.uids:
                self._read_by = [p for p in self._read_by if p.seat.uid != uid]
                if self._read_by:
                    self._reading.remove(uid)
                else:
                    self._reading = None
            if uid in self._writing.uids:
                uids = self._writing.uids
                self._writing.filter([at for at, other in enumerate(uids) if other != uid])
        if not self._seats:
            self._clear()

    def _clear(self) -> None:
        self._seats.clear()
        self._sampler.draws.clear()
        self._prompts.clear()
        self._rows.clear()
        self._waiting.clear()
        self._reading, self._read_by = None, []
        self._writing = self._none()
        if self._wired is not None:
            self._wired.close()
            self._wired = None

    def _wire(self) -> None:
        """Keep the weights in memory while there is work, where the platform has such a limit."""
        if self._wired is None:
            from mlx_vlm.generate.common import wired_limit

            self._wired = contextlib.ExitStack()
            self._wired.enter_context(
                wired_memory.SHARED.held(wired_limit(self._model, [self._stream]))
            )


def _give_whole(reading: Any) -> None:
    """Let the model cut what belongs to a prompt, as it does for mlx-vlm's `stream_generate`.

    A batch of mlx-vlm's cuts masks to each chunk, but not the features that they select: from
    the second chunk on qwen3_vl would be given those of the first one (mlx-vlm 0.7.10).
    """
    if reading._prompt_length_aware_keys:
        reading._prompt_length_aware_keys = []


def _never(token: int) -> bool:
    return False
