"""Batched requests to one model: prefill in chunks, and decode of all rows at once."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from mlx_magic.backends.batching import forward as batching_forward
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.admission import BatchLimits
from mlx_magic.backends.batching.batch import (
    MAX_PREFILL_BATCH,
    Batch,
    JointPrefill,
    NextToken,
    Slot,
)
from mlx_magic.backends.batching.decode import DecodeBatch, Sampler, next_tokens, sample_slots
from mlx_magic.backends.batching.forward import ForwardModel, Inputs
from mlx_magic.backends.batching.prefill import PrefillBatch
from mlx_magic.backends.batching.sampling import LogitsProcessor, SamplingParams, guarded
from mlx_magic.backends.grammars.matcher import GrammarMatcher
from mlx_magic.backends.prefix_cache.radix_tree import Rows, cut_out

RESERVED = 2
"""Slots that background requests leave free."""

CLEAR_EVERY = 256
"""Steps after which unused buffers are freed, as in mlx-lm's own generation."""


class ModelBatch(Batch):
    """Each step reads a prefill chunk and decodes a token of every running request.

    Parameters
    ----------
    forward : ForwardModel
    chunk : int
        Prompt tokens per prefill chunk, of all prompts that share it.
    most : int
        Maximum number of requests in decode; the others wait.
    joint_tokens : int
        See `PrefillBatch`.
    joint_prefill : callable, optional
        Returns how prompts share a prefill if not all caches are plain ones; by default they do
        not. Plain caches can always be padded.
    make_caches : callable, optional
        Makes the caches of a request, if they are not the model's own. Only with `most` 1: such
        caches cannot be merged.
    sampler : callable, optional

    Attributes
    ----------
    plain : bool
        Whether all caches are plain KV caches.
    limits : BatchLimits
        Limits of this batch, for memory admission.
    """

    def __init__(
        self,
        forward: ForwardModel,
        *,
        chunk: int,
        most: int,
        joint_tokens: int = 0,
        joint_prefill: Callable[[], JointPrefill] = lambda: "alone",
        make_caches: Callable[[], list[Any]] | None = None,
        sampler: Sampler = sample_slots,
    ) -> None:
        super().__init__()
        assert make_caches is None or most == 1
        self._forward: Any = forward
        self._make_caches: Any = make_caches or forward.new_caches
        self._chunk = chunk
        self._most = most
        self._joint_tokens = joint_tokens
        self._sampler = sampler
        self._stream = forward.stream
        # A question beside a full batch of background requests would wait for the end of one.
        self._reserved = RESERVED if most > 2 * RESERVED else 0
        self._waiting: list[Slot] = []
        self._prefill_batch: PrefillBatch | None = None
        self._decode_batch: DecodeBatch | None = None
        self._steps = 0
        self._wired: contextlib.ExitStack | None = None
        # Other caches may store the padding of a prompt, and cannot be cut.
        self.plain = make_caches is None and kv_cache.all_plain(forward.new_caches())
        self._joint_prefill: Any = (lambda: "padded") if self.plain else joint_prefill
        self.limits = BatchLimits(most, self._held)

    def add(
        self,
        tokens: list[int],
        params: SamplingParams,
        *,
        inputs: Inputs | None = None,
        cache: list[Any] | None = None,
        processors: Iterable[LogitsProcessor] = (),
        matcher: GrammarMatcher | None = None,
        checkpoint_at: int = 0,
        on_checkpoint: Callable[[list[Any]], None] | None = None,
        background: bool = False,
    ) -> Slot:
        """Add a request. For the parameters see `Slot`."""
        slot = self.take_slot(
            tokens=tokens,
            params=params,
            inputs=inputs or {},
            cache=cache,
            matcher=matcher,
            checkpoint_at=checkpoint_at,
            on_checkpoint=on_checkpoint,
            background=background,
        )
        slot.processors = [guarded(processor, slot.fail) for processor in processors]
        self._waiting.append(slot)
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
            At least up to the token that the request took last, unless that is the first of the
            answer. None if the request is not in decode, or the caches are not plain ones.
        """
        decode = self._decode_batch
        if not self.plain or decode is None or slot not in decode.slots:
            return None
        return cut_out(decode.caches, [(decode.slots.index(slot), start)])[0]

    def state(self, slot: Slot) -> list[Any] | None:
        """Return the caches of a request in decode, one per layer.

        They have read the prompt and the answer up to the token before ``slot.position``. None if
        the request is not in decode, or its row cannot be taken out.
        """
        decode = self._decode_batch
        if decode is None or slot not in decode.slots:
            return None
        return kv_cache.extracted(decode.caches, decode.slots.index(slot))

    def close(self) -> None:
        """Release the model at once: the batch itself is part of a reference cycle."""
        self._forward = self._make_caches = self._joint_prefill = None
        self._end_all()

    def _held(self) -> int:
        held = [cache for slot in self._waiting for cache in slot.cache or []]
        for part in (self._decode_batch, self._prefill_batch):
            held += part.caches if part is not None else []
        return kv_cache.caches_nbytes(held)

    def _step(self) -> None:
        import mlx.core as mx

        self._wire()
        self._steps += 1
        with mx.stream(self._stream):
            self._drop_finished()
            if self._decode_batch is not None:
                self._decode_step(self._decode_batch)
            self._advance_prefill()
        if self._steps % CLEAR_EVERY == 0:
            mx.clear_cache()

    def _decode_step(self, decode: DecodeBatch) -> None:
        """Decode tokens of each request. A request that has ended removes itself."""
        for slot, tokens in zip(decode.slots, decode.step(self._sampler), strict=True):
            # The first token of an answer was handed out at the end of prefill.
            for token in tokens[slot.begun :]:
                self._hand_out(slot, token)
            slot.begun = False

    def _advance_prefill(self) -> None:
        """Read a chunk of the current prefill, or start the next prefill."""
        slots = self._prefill_batch.slots if self._prefill_batch is not None else []
        begun = None
        try:
            if self._prefill_batch is None and self._next_slot is not None:
                slots = self._next_slots()
                self._prefill_batch = self._start_prefill(slots)
            if self._prefill_batch is not None:
                logits = self._prefill_batch.step()
                if logits is not None:
                    begun = self._begin_decode(self._prefill_batch, logits)
        except Exception as error:
            # A failed prefill does not affect the requests in decode.
            self._fail(slots, error)
            self._prefill_batch = None
        if begun is not None:
            self._prefill_batch = None
            if self._decode_batch is None:
                self._decode_batch = begun
            else:
                self._decode_batch.extend(begun)

    @property
    def _free_slots(self) -> int:
        return self._most - (len(self._decode_batch.slots) if self._decode_batch is not None else 0)

    @property
    def _next_slot(self) -> Slot | None:
        """The next prompt to read; those in the background come last, and leave slots free."""
        free = self._free_slots
        for slot in sorted(self._waiting, key=lambda slot: slot.background):
            return slot if free > (self._reserved if slot.background else 0) else None
        return None

    def _next_slots(self) -> list[Slot]:
        """Take the prompt that has waited longest, and prompts that can share its prefill."""
        first = self._next_slot
        assert first is not None
        chosen = [first]
        how: JointPrefill = self._joint_prefill()
        if how != "alone" and self._forward.joins(first.inputs):
            padded = how == "padded"
            free = self._free_slots - (self._reserved if first.background else 0)
            sharing = (
                slot
                for slot in self._waiting
                if slot is not first and slot.shares_prefill_with(first, padded=padded)
            )
            most = self._most_sharing(len(first.tokens), free)
            chosen += itertools.islice(sharing, most - 1)
        if len(chosen) > 1 and not self._reads_in_chunks(first):
            chosen = [first]
        self._waiting = [slot for slot in self._waiting if slot not in chosen]
        return chosen

    def _most_sharing(self, length: int, free: int) -> int:
        """Return how many prompts of about this length share a prefill at most."""
        most = min(MAX_PREFILL_BATCH, free)
        # One call for most of them takes less time than two calls for all.
        fits = self._chunk // length
        return min(most, fits) if fits >= MAX_PREFILL_BATCH - 2 else most

    def _reads_in_chunks(self, slot: Slot) -> bool:
        import mlx.core as mx

        caches = slot.cache or self._make_caches()
        tokens = mx.array([slot.tokens])
        return bool(self._forward.reads_in_chunks(tokens, caches, slot.inputs))

    def _start_prefill(self, slots: list[Slot]) -> PrefillBatch:
        caches = [slot.cache or self._make_caches() for slot in slots]
        return PrefillBatch(
            self._forward,
            slots,
            kv_cache.merged(*caches) if len(slots) > 1 else caches[0],
            chunk=self._chunk,
            joint_tokens=self._joint_tokens,
        )

    def _begin_decode(self, prefill: PrefillBatch, logits: Any) -> DecodeBatch:
        """Sample the first tokens, and hand them out: the next step returns them a step later."""
        tokens = next_tokens(logits, prefill.slots, self._sampler)
        offsets = prefill.position_offsets()
        decode = DecodeBatch(
            self._forward, prefill.slots, prefill.caches, tokens, offsets, joint=self.plain
        )
        for slot, token in zip(prefill.slots, tokens.tolist(), strict=True):
            slot.read = len(slot.tokens)
            self._hand_out(slot, token)
            slot.begun = True
        return decode

    def _hand_out(self, slot: Slot, token: int) -> None:
        slot.give(NextToken(token, bool(self._forward.is_stop_token(token))))

    def _drop_finished(self) -> None:
        """Drop the rows of requests that left since the last step, in one copy."""
        if self._prefill_batch is not None:
            self._prefill_batch.keep(self._slots)
            if not self._prefill_batch.slots:
                self._prefill_batch = None
        if self._decode_batch is None:
            return
        slots = self._decode_batch.slots
        rows = [at for at, slot in enumerate(slots) if slot.uid in self._slots]
        if not rows:
            self._decode_batch = None
        elif len(rows) < len(slots):
            self._decode_batch.filter(rows)

    def _abandon(self) -> list[int]:
        self._prefill_batch = self._decode_batch = None
        waiting = {slot.uid for slot in self._waiting}
        # Includes requests between prefill and decode.
        return [uid for uid in self._slots if uid not in waiting]

    def _drop(self, uid: int) -> None:
        # The next step drops its rows from the caches.
        self._waiting = [slot for slot in self._waiting if slot.uid != uid]
        if not self._slots:
            self._clear()

    def _clear(self) -> None:
        self._slots.clear()
        self._waiting.clear()
        self._prefill_batch = self._decode_batch = None
        if self._wired is not None:
            self._wired.close()
            self._wired = None

    def _wire(self) -> None:
        """Wire the weights while there are requests, if the platform has a wired limit."""
        if self._wired is None:
            self._wired = contextlib.ExitStack()
            self._wired.enter_context(batching_forward.SHARED.held(self._forward.wired()))
