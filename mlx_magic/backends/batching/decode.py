"""Decode of several requests: one token of each a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.batch import Slot
from mlx_magic.backends.batching.forward import ForwardModel
from mlx_magic.backends.batching.sampling import sample_rows
from mlx_magic.backends.grammars.mask import masked

Sampler = Callable[[Any, Sequence[Slot]], Any]
"""Takes logits of shape (rows, vocabulary) and the rows; returns tokens of shape (rows,)."""


def sample_slots(logits: Any, slots: Sequence[Slot]) -> Any:
    """Sample the next token of each row with the row's own parameters."""
    draws = [slot.params for slot in slots]
    return sample_rows(logits, draws, [slot.position for slot in slots])


def next_tokens(logits: Any, slots: Sequence[Slot], sampler: Sampler) -> Any:
    """Sample the next token of each row, and start to compute it.

    Parameters
    ----------
    logits : mlx.core.array
        Shape (rows, vocabulary).
    slots : sequence of Slot
    sampler : callable
    """
    import mlx.core as mx

    if any(slot.processors for slot in slots):
        rows = []
        for at, slot in enumerate(slots):
            row = logits[at : at + 1]
            for process in slot.processors:
                row = process(mx.array(slot.answer, dtype=mx.int32), row)
            rows.append(row)
        logits = mx.concatenate(rows, axis=0)
    if any(slot.matcher is not None for slot in slots):
        logits = masked(logits, [slot.matcher for slot in slots])
    tokens = sampler(logits, slots)
    mx.async_eval(tokens)  # type: ignore[no-untyped-call]
    for slot in slots:
        slot.position += 1
    return tokens


class DecodeBatch:
    """Requests whose prompts are read.

    A step hands out the tokens that the step before has sampled, while the device computes the
    next ones. A single request keeps plain caches until another one joins, so that its answer
    is the library's own, bit by bit.

    Parameters
    ----------
    forward : ForwardModel
    slots : list of Slot
        One per row.
    caches : list
        One per layer; plain ones only with a single row.
    tokens : mlx.core.array
        The first token of each answer, shape (rows,).
    offsets : mlx.core.array or None
        See `ForwardModel.position_offsets`.
    joint : bool
        Whether several tokens of a row may be read in one call.
    """

    def __init__(
        self,
        forward: ForwardModel,
        slots: list[Slot],
        caches: list[Any],
        tokens: Any,
        offsets: Any = None,
        *,
        joint: bool = False,
    ) -> None:
        self._forward = forward
        self.slots = slots
        self.caches = caches
        self._tokens = tokens
        self._offsets = offsets
        self._joint = joint

    def step(self, sampler: Sampler) -> list[list[int]]:
        """Return the pending tokens of each row, and start to compute the next ones.

        There is one of each row, and several of a row that is alone and whose grammar leaves no
        choice about what follows.
        """
        import mlx.core as mx

        inputs = self._tokens
        logits = self._forward.decode(inputs[:, None], self.caches, self._offsets)
        forced: list[int] = []
        if any(slot.matcher is not None for slot in self.slots):
            # The grammars are followed while the device computes.
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            self._follow_grammars(inputs.tolist())
            forced = self._forced()
        if forced:
            logits = self._forward.decode(mx.array([forced]), self.caches, self._offsets)
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            self.slots[0].position += len(forced)
        if any(slot.processors for slot in self.slots):
            # A processor has to know the token before its logits are sampled.
            for slot, token in zip(self.slots, inputs.tolist(), strict=True):
                slot.answer += [token, *forced]
        self._tokens = next_tokens(logits, self.slots, sampler)
        mx.eval(inputs)
        return [[token, *forced] for token in inputs.tolist()]

    def _forced(self) -> list[int]:
        """Take the tokens about which the grammar of a single row leaves no choice.

        They are read in one call. In a batch they come one by one, so that rows stay aligned.
        """
        matcher = self.slots[0].matcher
        if not self._joint or len(self.slots) > 1 or self._offsets is not None or matcher is None:
            return []
        try:
            return matcher.take_forced()
        except Exception as error:
            self.slots[0].matcher = None
            self.slots[0].fail(error)
            return []

    def _follow_grammars(self, tokens: list[int]) -> None:
        for slot, token in zip(self.slots, tokens, strict=True):
            if slot.matcher is not None:
                try:
                    slot.matcher.advance(token)
                except Exception as error:
                    slot.matcher = None
                    slot.fail(error)

    def extend(self, other: DecodeBatch) -> None:
        """Add the rows of another batch."""
        import mlx.core as mx

        if (self._offsets is None) != (other._offsets is None):
            raise ValueError("some requests of a batch have position offsets, and others have not")
        # Otherwise the graph of a pending step would be computed once for each use.
        mx.eval(self._tokens, other._tokens, kv_cache.states([*self.caches, *other.caches]))
        self.caches = [kv_cache.as_batch(cache) for cache in self.caches]
        for cache, more in zip(self.caches, other.caches, strict=True):
            cache.extend(kv_cache.as_batch(more))
        self.slots = [*self.slots, *other.slots]
        self._tokens = mx.concatenate([self._tokens, other._tokens])
        if self._offsets is not None:
            self._offsets = mx.concatenate([self._offsets, other._offsets])

    def filter(self, rows: Sequence[int]) -> None:
        """Drop all other rows; at least one is left."""
        import mlx.core as mx

        mx.eval(self._tokens, kv_cache.states(self.caches))
        index = mx.array(list(rows), mx.int32)
        for cache in self.caches:
            cache.filter(index)
        self.slots = [self.slots[at] for at in rows]
        self._tokens = self._tokens[index]
        if self._offsets is not None:
            self._offsets = self._offsets[index]
