"""Prefill of several prompts in chunks; a prompt can leave between two chunks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.batch import Slot
from mlx_magic.backends.batching.forward import ForwardModel, Inputs, Row

EMBEDS = "inputs_embeds"


class PrefillBatch:
    """Prompts that share a prefill from its first chunk on.

    Shorter prompts are padded on the right, where no token attends to the padding, and the
    padding moves to the left before the last token of each prompt is read. Caches that forget
    (windows, recurrences) know of the padding beforehand, so that it takes no room in them. A
    prompt that leaves such a prefill is dropped at its end.

    Parameters
    ----------
    forward : ForwardModel
    slots : list of Slot
        Several only if `Slot.shares_prefill_with`, and all with a cached prefix or all without.
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
        self._rows = [Row(slot.inputs, len(slot.tokens)) for slot in slots]
        self._done = 0
        whole = mx.array([slots[0].tokens]) if len(slots) == 1 else None
        # The model's masks may depend on all of the prompt: then it is read in one call.
        in_one = whole is not None and not forward.reads_in_chunks(whole, caches, slots[0].inputs)
        if in_one:
            chunk = len(slots[0].tokens)
            slots[0].checkpoint_at = 0
        self._chunk = max(1, chunk // len(slots))
        known = all(forward.joins(slot.inputs) for slot in slots)
        self._joint = min(joint_tokens // len(slots), self._chunk + 1) if known else 0
        if in_one:
            self._joint = chunk
        self._widths = [len(slot.tokens) for slot in slots]
        pauses = {slot.checkpoint_at for slot in slots}
        self._pause = pauses.pop() if len(pauses) == 1 else 0
        if self._pause >= min(self._widths):
            self._pause = 0
        self._pads_ahead = len(slots) > 1 and not kv_cache.all_plain(caches)
        if self._pads_ahead:
            self._chunk = max(2, self._chunk)
            if self._pause < 2 or max(self._widths) - 1 - self._pause < 2:
                self._pause = 0
        self._left: set[int] = set()
        if self._pads_ahead:
            last = 0 if self._ends_jointly() else 1
            kv_cache.prepare_padding(caches, [width - last for width in self._widths])
        for slot in slots:
            # Decode may take long: free what only prefill needs.
            slot.inputs, slot.cache = {}, None

    def step(self) -> Any:
        """Read a chunk; after the last one return logits of shape (rows, vocabulary), else None."""
        import mlx.core as mx

        lengths = self._widths
        longest = max(lengths)
        if not self._joins_rest(self._done):
            end = self._next_end(self._done)
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
                if end == self._pause:
                    self._give_checkpoints()
                if longest - end > 1:
                    return None
        if self._joins_rest(self._done):
            return self._without_left(self._read_rest(lengths, longest))
        return self._without_left(self._read_last(lengths))

    def position_offsets(self) -> Any:
        """Return the position offsets of the rows in decode. See `ForwardModel`."""
        if len(self._rows) == 1:
            return self._forward.position_offsets(self._rows[0].inputs, 1)
        inputs = self._forward.columns([row.cut(0, 1) for row in self._rows], 1)
        return self._forward.position_offsets(inputs, len(self._rows))

    def keep(self, uids: Collection[int]) -> None:
        """Drop all other requests."""
        rows = [at for at, slot in enumerate(self.slots) if slot.uid in uids]
        if self._pads_ahead and rows:
            self._left = {slot.uid for slot in self.slots if slot.uid not in uids}
            return
        self._drop_all_but(rows)

    def _drop_all_but(self, rows: list[int]) -> None:
        import mlx.core as mx

        if rows and len(rows) < len(self.slots):
            index = mx.array(rows, mx.int32)
            for cache in self.caches:
                cache.filter(index)
        self.slots = [self.slots[at] for at in rows]
        self._rows = [self._rows[at] for at in rows]
        self._widths = [self._widths[at] for at in rows]

    def _without_left(self, logits: Any) -> Any:
        """Drop the rows that left a prefill that could not let them go."""
        import mlx.core as mx

        rows = [at for at, slot in enumerate(self.slots) if slot.uid not in self._left]
        if len(rows) == len(self.slots):
            return logits
        self._drop_all_but(rows)
        return logits[mx.array(rows, mx.int32)]

    def _joins_rest(self, done: int) -> bool:
        """Whether all that is left is read in one call, the last tokens included."""
        longest = max(self._widths)
        pauses = done < self._pause < longest
        return not pauses and longest - done <= self._joint and min(self._widths) > done

    def _next_end(self, done: int) -> int:
        """Return where the chunk ends that begins at `done`."""
        longest = max(self._widths)
        pauses = done < self._pause < longest
        stop = self._pause if pauses else longest - 1
        end = min(done + self._chunk, stop)
        # A window of mlx-lm takes a single token for decode, and refuses it if there is padding.
        return stop if self._pads_ahead and stop - end == 1 else end

    def _ends_jointly(self) -> bool:
        """Whether the last tokens will be read in one call with others."""
        done = 0
        while not self._joins_rest(done):
            end = self._next_end(done)
            if end <= done or max(self._widths) - end <= 1:
                return self._joins_rest(max(done, end))
            done = end
        return True

    def _give_checkpoints(self) -> None:
        """Hand each request the state of its caches, at the end of its images."""
        for at, slot in enumerate(self.slots):
            if slot.on_checkpoint is None or slot.uid in self._left:
                continue
            alone = len(self.slots) == 1
            caches = self.caches if alone else kv_cache.extracted(self.caches, at)
            if caches is not None:
                slot.on_checkpoint(caches)

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
        if len(self._rows) == 1:
            inputs = self._single_inputs(lengths[0] - 1, lengths[0])
        else:
            # The last tokens are in different columns.
            rows = [row.cut(row.length - 1, row.length) for row in self._rows]
            inputs = self._forward.columns(rows, 1)
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
        if len(self._rows) == 1:
            return tokens, self._single_inputs(begin, end)
        cut = [
            row.cut(begin, min(end, length))
            for row, length in zip(self._rows, lengths, strict=True)
        ]
        return tokens, self._forward.columns(cut, end - begin)

    def _single_inputs(self, begin: int, end: int) -> Inputs:
        """Return the inputs of a single prompt: the model cuts all but the embeddings itself."""
        inputs = self._rows[0].inputs
        return inputs if EMBEDS not in inputs else {**inputs, EMBEDS: inputs[EMBEDS][:, begin:end]}

    def _move_padding_left(self, padding: Sequence[int]) -> None:
        if not self._pads_ahead:
            if any(padding):
                for cache in self.caches:
                    cache.prepare(right_padding=list(padding))
                    cache.finalize()
        else:
            kv_cache.move_padding_left(self.caches)
