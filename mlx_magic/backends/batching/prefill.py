"""Prefill of several prompts in chunks; a prompt can leave between two chunks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from mlx_magic.backends.batching.batch import Slot
from mlx_magic.backends.batching.forward import ForwardModel, Inputs

EMBEDS = "inputs_embeds"


class PrefillBatch:
    """Prompts that share a prefill from its first chunk on.

    Shorter prompts are padded on the right, where no token attends to the padding, and the
    padding moves to the left before the last token of each prompt is read.

    Parameters
    ----------
    forward : ForwardModel
    slots : list of Slot
        Several only if `Slot.plain`, and all with a cached prefix or all without.
    caches : list
        One per layer; plain ones for a single prompt, as in the libraries' own generation.
    chunk : int
        Tokens of all rows in one call.
    joint_tokens : int
        Tokens of all rows that may be read in one call with the last token of a prompt; 0 if the
        last token has a call of its own, as in the libraries' own generation.

    Attributes
    ----------
    slots : list of Slot
    caches : list
    """

    def __init__(
        self,
        forward: ForwardModel,
        slots: list[Slot],
        caches: list[Any],
        *,
        chunk: int,
        joint_tokens: int,
    ) -> None:
        import mlx.core as mx

        self._forward = forward
        self.slots = slots
        self.caches = caches
        self._embeds: list[Any] = [slot.inputs.get(EMBEDS) for slot in slots]
        self._extra = {k: v for k, v in slots[0].inputs.items() if k != EMBEDS}
        self._done = 0
        whole = mx.array([slots[0].tokens]) if len(slots) == 1 else None
        if whole is not None and not forward.reads_in_chunks(whole, caches, slots[0].inputs):
            chunk = len(slots[0].tokens)
            slots[0].checkpoint_at = 0
        self._chunk = max(1, chunk // len(slots))
        plain = all(slot.plain for slot in slots)
        self._joint = min(joint_tokens // len(slots), self._chunk + 1) if plain else 0
        for slot in slots:
            # Decode may take long: free what only prefill needs.
            slot.inputs, slot.cache = {}, None

    def step(self) -> Any:
        """Read a chunk; after the last one return logits of shape (rows, vocabulary), else None."""
        import mlx.core as mx

        lengths = [len(slot.tokens) for slot in self.slots]
        longest = max(lengths)
        pause = self.slots[0].checkpoint_at if len(self.slots) == 1 else 0
        pauses = self._done < pause < longest
        if pauses or longest - self._done > self._joint or min(lengths) <= self._done:
            end = min(self._done + self._chunk, longest - 1, pause if pauses else longest)
            if end > self._done:
                # The last token of each prompt is left for `prefill_end`.
                tokens, inputs = self._columns(end, [length - 1 for length in lengths])
                self._forward.prefill(tokens, self.caches, inputs)
                # Without this, MLX would queue the next chunks before this one is done, and a
                # cancel would wait for all of them.
                mx.eval([cache.state for cache in self.caches])
                mx.clear_cache()
                self._done = end
                for slot, length in zip(self.slots, lengths, strict=True):
                    slot.read = min(end, length - 1)
                if end == pause and self.slots[0].on_checkpoint is not None:
                    self.slots[0].on_checkpoint(self.caches)
                if longest - end > 1:
                    return None
        if longest - self._done <= self._joint and min(lengths) > self._done:
            return self._read_rest(lengths, longest)
        return self._read_last(lengths)

    def position_offsets(self) -> Any:
        """Return the position offsets of the rows in decode. See `ForwardModel`."""
        return self._forward.position_offsets(self._extra, len(self.slots))

    def keep(self, uids: Collection[int]) -> None:
        """Drop all other requests."""
        import mlx.core as mx

        rows = [at for at, slot in enumerate(self.slots) if slot.uid in uids]
        if rows and len(rows) < len(self.slots):
            index = mx.array(rows, mx.int32)
            for cache in self.caches:
                cache.filter(index)
        self.slots = [self.slots[at] for at in rows]
        self._embeds = [self._embeds[at] for at in rows]

    def _read_rest(self, lengths: Sequence[int], longest: int) -> Any:
        """Read all tokens that are left, the last ones included, in one call."""
        import mlx.core as mx

        tokens, inputs = self._columns(longest, lengths)
        keep = longest - min(lengths) + 1
        logits = self._forward.prefill_end(tokens, self.caches, inputs, keep)
        self._move_padding_left([longest - length for length in lengths])
        if keep == 1:
            return logits[:, -1]
        ends = [logits.shape[1] - 1 - (longest - length) for length in lengths]
        return logits[mx.arange(len(ends)), mx.array(ends)]

    def _read_last(self, lengths: Sequence[int]) -> Any:
        """Read the last token of each prompt, after all others."""
        import mlx.core as mx

        self._move_padding_left([self._done - (length - 1) for length in lengths])
        tokens = mx.array([slot.tokens[-1:] for slot in self.slots])
        inputs: Inputs = self._extra
        if self._embeds[0] is not None:
            last = [rows[:, n - 1 : n] for rows, n in zip(self._embeds, lengths, strict=True)]
            inputs = {**self._extra, EMBEDS: mx.concatenate(last, axis=0)}
        return self._forward.prefill_end(tokens, self.caches, inputs, 1)[:, -1]

    def _columns(self, end: int, lengths: Sequence[int]) -> tuple[Any, Inputs]:
        """Return tokens and inputs up to column `end`; rows end at `lengths` and are padded."""
        import mlx.core as mx

        begin = self._done
        rows = [
            slot.tokens[begin : min(end, length)]
            for slot, length in zip(self.slots, lengths, strict=True)
        ]
        tokens = mx.array([row + [0] * (end - begin - len(row)) for row in rows])
        if self._embeds[0] is None:
            return tokens, self._extra
        parts = [
            mx.pad(
                embeds[:, begin : begin + len(row)], [(0, 0), (0, end - begin - len(row)), (0, 0)]
            )
            if len(row) < end - begin
            else embeds[:, begin:end]
            for embeds, row in zip(self._embeds, rows, strict=True)
        ]
        embeds = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=0)
        return tokens, {**self._extra, EMBEDS: embeds}

    def _move_padding_left(self, padding: Sequence[int]) -> None:
        if any(padding):
            for cache in self.caches:
                cache.prepare(right_padding=list(padding))
                cache.finalize()
