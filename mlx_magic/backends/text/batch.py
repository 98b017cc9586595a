"""Batched requests to one text model, with mlx-lm's batches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterable
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
from mlx_magic.backends.prefix_cache.radix_tree import Rows, cut_out
from mlx_magic.backends.text.prefill import PrefillBatch, TextPrompt, joined

CLEAR_EVERY = 256
"""Steps after which unused buffers are freed, as in mlx-lm's own generation."""


class CountingSampler(RowSampler):
    """A `RowSampler` that counts each row's tokens: mlx-lm passes no positions to a sampler.

    Attributes
    ----------
    counts : dict of int to int
        Number of tokens so far, by uid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}

    @classmethod
    def alone(cls, params: SamplingParams) -> CountingSampler:
        """Return a sampler for a request that is answered alone."""
        sampler = cls()
        sampler.admit(0, params)
        sampler.rows = [0]
        return sampler

    def admit(self, uid: int, params: SamplingParams) -> None:
        """Add a request."""
        self.draws[uid] = params
        self.counts[uid] = 0

    def dismiss(self, uid: int) -> None:
        """Remove a request."""
        self.draws.pop(uid, None)
        self.counts.pop(uid, None)

    def __call__(self, logprobs: Any) -> Any:
        """Sample the next token of each row. See `RowSampler.sample_target`."""
        positions = [self.counts[uid] for uid in self.rows]
        for uid in self.rows:
            self.counts[uid] += 1
        return self.sample_target(logprobs, row_ids=self.rows, positions=positions)


class TextBatch(Batch):
    """Each step reads a prefill chunk and decodes a token of every running request.

    Parameters
    ----------
    model : module
        A model of mlx-lm whose caches can be merged.
    stop_tokens : collection of int
        Tokens that end an answer.
    chunk : int
        Prompt tokens per prefill chunk.
    most : int
        Maximum number of requests in decode; the others wait.
    make_cache : callable, optional
        Makes the caches of a request, if they are not plain ones. Only with `most` 1: such caches
        cannot be merged.
    sampler : CountingSampler, optional
        Any sampler with its methods `admit` and `dismiss`.

    Attributes
    ----------
    plain : bool
        Whether all caches are plain KV caches.
    limits : BatchLimits
        Limits of this batch, for memory admission. Prompts of a prefill share one chunk.
    """

    def __init__(
        self,
        model: Any,
        stop_tokens: Collection[int],
        *,
        chunk: int,
        most: int,
        make_cache: Callable[[], list[Any]] | None = None,
        sampler: Any = None,
    ) -> None:
        super().__init__()
        from mlx_lm.generate import generation_stream
        from mlx_lm.models.cache import make_prompt_cache

        assert make_cache is None or most == 1
        self._make_cache: Any = make_cache or partial(make_prompt_cache, model)
        self.limits = BatchLimits(most, 1, self._held)

        self._model = model
        self._stop_tokens = frozenset(stop_tokens)
        self._chunk = chunk
        self._most = most
        self._stream = generation_stream
        self._sampler: Any = sampler or CountingSampler()
        self._waiting: list[TextPrompt] = []
        self._prefill_batch: PrefillBatch | None = None
        # mlx-lm's GenerationBatch, None without requests in decode. A single request keeps plain
        # caches until another joins: its answer then equals mlx-lm's own, bit by bit.
        self._decode_batch: Any = None
        self._joined = False
        self._steps = 0
        # Other caches would store the padding of a prompt, and cannot be cut.
        self.plain = make_cache is None and _all_plain(model)
        self._wired: contextlib.ExitStack | None = None

    def add(
        self,
        tokens: list[int],
        params: SamplingParams,
        *,
        cache: list[Any] | None = None,
        processors: Iterable[LogitsProcessor] = (),
    ) -> Slot:
        """Add a request. For the parameters see `TextPrompt`."""
        slot = self.take_slot()
        self._sampler.admit(slot.uid, params)
        safe = [guarded(processor, slot.fail) for processor in processors]
        self._waiting.append(TextPrompt(slot, tokens, cache, safe))
        return slot

    def row(self, slot: Slot, start: int) -> Rows | None:
        """Return the keys and values of a request in decode, per layer.

        Parameters
        ----------
        slot : Slot
        start : int
            First token to return; positions count from the start of the cached prefix.

        Returns
        -------
        list or None
            At least up to the token that the request took last. None if the request is not in
            decode, or the caches are not plain ones.
        """
        if not self.plain or self._decode_batch is None or slot.uid not in self._decode_batch.uids:
            return None
        at = self._decode_batch.uids.index(slot.uid)
        return cut_out(self._decode_batch.prompt_cache, [(at, start)])[0]

    def close(self) -> None:
        """Release the model at once: the batch itself is part of a reference cycle."""
        self._model = self._make_cache = None
        self._end_all()

    def _held(self) -> int:
        decode = self._decode_batch.prompt_cache if self._decode_batch is not None else []
        prefill = self._prefill_batch.caches if self._prefill_batch is not None else []
        return kv_cache.caches_nbytes([*decode, *prefill])

    def _step(self) -> None:
        import mlx.core as mx

        self._wire()
        self._steps += 1
        with mx.stream(self._stream):
            self._drop_finished()
            if self._decode_batch is not None:
                self._decode_step()
            self._advance_prefill()
        if self._steps % CLEAR_EVERY == 0:
            mx.clear_cache()

    def _advance_prefill(self) -> None:
        """Read a chunk of the current prefill, or start the next prefill."""
        prompts = self._prefill_batch.prompts if self._prefill_batch is not None else []
        done = None
        try:
            if self._prefill_batch is None and self._waiting and self._free_slots > 0:
                prompts = self._next_prompts()
                self._prefill_batch = self._start_prefill(prompts)
            if self._prefill_batch is not None:
                done = self._prefill_step(self._prefill_batch)
        except Exception as error:
            # A failed prefill does not affect the requests in decode.
            self._fail([prompt.slot for prompt in prompts], error)
            self._prefill_batch = None
        if done is not None and self._prefill_batch is not None:
            together, self._prefill_batch = self._prefill_batch.joined, None
            self._join(done, together=together)
            for prompt in prompts:
                prompt.slot.read = len(prompt.tokens)

    @property
    def _free_slots(self) -> int:
        return self._most - (len(self._decode_batch.uids) if self._decode_batch is not None else 0)

    def _drop_finished(self) -> None:
        """Drop the rows of requests that left since the last step, in one copy."""
        if self._prefill_batch is not None:
            self._prefill_batch.keep(self._slots)
            if not self._prefill_batch.prompts:
                self._prefill_batch = None
        if self._decode_batch is None:
            return
        rows = [at for at, uid in enumerate(self._decode_batch.uids) if uid in self._slots]
        if not rows:
            self._decode_batch = None
        elif len(rows) < len(self._decode_batch.uids):
            self._decode_batch.filter(rows)

    def _decode_step(self) -> None:
        """Decode a token of each request. A request that has ended removes itself."""
        self._sampler.rows = list(self._decode_batch.uids)
        for response in self._decode_batch.next():
            token = int(response.token)
            self._slots[response.uid].give(NextToken(token, token in self._stop_tokens))

    def _next_prompts(self) -> list[TextPrompt]:
        """Take the prompt that has waited longest, and prompts that can share its prefill."""
        first = self._waiting[0]
        most = min(MAX_PREFILL_BATCH, self._free_slots) if self.plain else 1
        compatible = [prompt for prompt in self._waiting[1:] if prompt.compatible_with(first)]
        chosen = [first, *compatible[: most - 1]]
        self._waiting = [prompt for prompt in self._waiting if prompt not in chosen]
        return chosen

    def _start_prefill(self, prompts: list[TextPrompt]) -> PrefillBatch:
        empty = self._make_cache()
        caches = [prompt.cache or empty for prompt in prompts]
        for prompt in prompts:
            # Decode may take long: do not hold the cached prefix meanwhile.
            prompt.cache = None
        if len(prompts) > 1:
            return PrefillBatch(prompts, joined(*caches), joined=True)
        return PrefillBatch(prompts, caches[0], joined=False)

    def _prefill_step(self, prefill: PrefillBatch) -> Any:
        """Read a chunk; after the last one return the batch to decode, else None."""
        import mlx.core as mx

        if prefill.done < prefill.length:
            rows = prefill.chunk(self._chunk)
            self._model(mx.array(rows), cache=prefill.caches)
            # Without this, MLX would queue the next chunks before this one is done, and a cancel
            # would wait for all of them.
            mx.eval([cache.state for cache in prefill.caches])
            mx.clear_cache()
            prefill.advance(len(rows[0]))
            if prefill.done < prefill.length:
                return None
        prefill.move_padding_left()
        return self._start_decode(prefill)

    def _start_decode(self, prefill: PrefillBatch) -> Any:
        """Make mlx-lm's batch of prompts that were read up to their last token but one."""
        import mlx.core as mx
        from mlx_lm.generate import GenerationBatch, StopSequences

        count = len(prefill.prompts)
        self._sampler.rows = [prompt.slot.uid for prompt in prefill.prompts]
        return GenerationBatch(
            self._model,
            list(self._sampler.rows),
            mx.array([prompt.tokens[-1] for prompt in prefill.prompts]),
            prefill.caches,
            [[] for _ in range(count)],
            [self._sampler] * count,
            self._sampler,
            [prompt.processors for prompt in prefill.prompts],
            # No limit here: the request removes itself at its max_tokens.
            [StopSequences()] * count,
            [sys.maxsize] * count,
        )

    def _join(self, new: Any, *, together: bool) -> None:
        """Add requests after their prefill to the decode batch."""
        if self._decode_batch is None:
            self._decode_batch, self._joined = new, together
            return
        if not self._joined:
            self._decode_batch.prompt_cache = joined(self._decode_batch.prompt_cache)
        if not together:
            new.prompt_cache = joined(new.prompt_cache)
        self._decode_batch.extend(new)
        self._joined = True

    def _abandon(self) -> list[int]:
        self._prefill_batch = self._decode_batch = None
        waiting = {prompt.slot.uid for prompt in self._waiting}
        # Includes requests between prefill and decode.
        return [uid for uid in self._slots if uid not in waiting]

    def _drop(self, uid: int) -> None:
        # The next step drops its rows from the caches.
        self._sampler.dismiss(uid)
        self._waiting = [prompt for prompt in self._waiting if prompt.slot.uid != uid]
        if not self._slots:
            self._clear()

    def _clear(self) -> None:
        for uid in list(self._sampler.draws):
            self._sampler.dismiss(uid)
        self._slots.clear()
        self._waiting.clear()
        self._prefill_batch = self._decode_batch = None
        if self._wired is not None:
            self._wired.close()
            self._wired = None

    def _wire(self) -> None:
        """Wire the weights while there are requests, if the platform has a wired limit."""
        if self._wired is None:
            from mlx_lm.generate import wired_limit

            self._wired = contextlib.ExitStack()
            self._wired.enter_context(
                wired_memory.SHARED.held(wired_limit(self._model, [self._stream]))
            )


def _all_plain(model: Any) -> bool:
    """Whether a model has plain KV caches only."""
    from mlx_lm.models.cache import KVCache, make_prompt_cache

    return all(type(cache) is KVCache for cache in make_prompt_cache(model))
