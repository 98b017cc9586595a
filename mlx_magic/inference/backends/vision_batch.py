"""Questions to one vision model, answered together with mlx-vlm's batches."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_magic.inference.backends.batch import Batch, Seat, Written
from mlx_magic.inference.backends.sampler import Draw, RowSampler

MOST_READ_TOGETHER = 8
"""Prompts that are read in one go where they come at once."""

LIKE_LENGTHS = 1.25
"""How much longer than the shortest a prompt may be that is read with it: padding costs time."""


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt that waits to be read.

    Attributes
    ----------
    seat : Seat
    tokens : list of int
    embeds : dict
        What the model's ``get_input_embeddings`` gave: ``inputs_embeds`` of shape
        (1, tokens, width), and what else the language model wants.
    max_tokens : int
    cache : list or None
        One of its own with a prefix in it; `tokens` and `embeds` are what follows then.
    """

    seat: Seat
    tokens: list[int]
    embeds: dict[str, Any]
    max_tokens: int
    cache: list[Any] | None = None

    @property
    def plain(self) -> bool:
        """Whether it can be read beside others: nothing but embeddings belongs to it."""
        return self.cache is None and set(self.embeds) == {"inputs_embeds"}


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
    """

    def __init__(self, language_model: Any, processor: Any, *, chunk: int, most: int) -> None:
        super().__init__()
        from mlx_vlm.generate.ar import GenerationBatch
        from mlx_vlm.generate.common import generation_stream

        self._model = language_model
        tokenizer = getattr(processor, "tokenizer", processor)
        self._ends = tokenizer.stopping_criteria
        self._chunk = chunk
        self._most = most
        self._stream = generation_stream
        self._sampler = RowSampler()
        self._waiting: list[Prompt] = []
        self._reading: Any = None
        self._read_by: list[Prompt] = []
        self._empty = GenerationBatch.empty
        self._writing: Any = self._none()
        self._wired: contextlib.ExitStack | None = None

    def add(
        self,
        tokens: list[int],
        embeds: dict[str, Any],
        *,
        max_tokens: int,
        draw: Draw,
        cache: list[Any] | None = None,
    ) -> Seat:
        """Let a request in. See `Prompt` for what is given."""
        seat = self.take_seat()
        self._sampler.draws[seat.uid] = draw
        self._waiting.append(Prompt(seat, tokens, embeds, max_tokens, cache))
        return seat

    def row_cache(self, seat: Seat) -> list[Any]:
        """Return a copy of what was read and written for a request that is being written."""
        at = self._writing.uids.index(seat.uid)
        return [cache.extract(at) for cache in self._writing.prompt_cache]

    def _none(self) -> Any:
        return self._empty(
            self._model, self._sampler, self._ends, compute_logprobs=False, greedy_sampling=False
        )

    def _step(self) -> None:
        import mlx.core as mx

        self._wire()
        with mx.stream(self._stream):
            if self._writing.uids:
                self._write()
            if self._reading is None and self._waiting and len(self._writing.uids) < self._most:
                self._begin_reading()
            if self._reading is not None:
                self._read()

    def _write(self) -> None:
        """Write a token of each answer; what has ended leaves."""
        uids = list(self._writing.uids)
        self._sampler.rows = uids
        for response in self._writing.next():
            seat = self._seats.get(response.uid)
            if seat is not None:
                stopped = response.finish_reason == "stop"
                seat.written.append(Written(int(response.token), stopped))

    def _begin_reading(self) -> None:
        prompts = self._next_prompts()
        from mlx_vlm.generate.ar import PromptProcessingBatch
        from mlx_vlm.models.cache import make_prompt_cache

        alone = prompts[0] if len(prompts) == 1 else None
        caches = (alone.cache or make_prompt_cache(self._model)) if alone else None
        embeds, more = (
            (alone.embeds["inputs_embeds"], _others(alone.embeds))
            if alone
            else (_padded([prompt.embeds["inputs_embeds"] for prompt in prompts]), {})
        )
        self._read_by = prompts
        self._reading = PromptProcessingBatch(
            self._model,
            [prompt.seat.uid for prompt in prompts],
            [prompt.tokens for prompt in prompts],
            [prompt.max_tokens for prompt in prompts],
            embeds,
            more,
            prefill_step_size=self._chunk,
            warm_cache=caches,
        )

    def _next_prompts(self) -> list[Prompt]:
        """Take the prompt that waits longest, and those beside which it can be read."""
        first = self._waiting[0]
        room = min(MOST_READ_TOGETHER, self._most - len(self._writing.uids))
        length = len(first.tokens)
        chosen = [first]
        if first.plain:
            chosen += [
                prompt
                for prompt in self._waiting[1:]
                if prompt.plain
                and len(prompt.tokens) <= LIKE_LENGTHS * length
                and length <= LIKE_LENGTHS * len(prompt.tokens)
            ][: room - 1]
        self._waiting = [prompt for prompt in self._waiting if prompt not in chosen]
        return chosen

    def _read(self) -> None:
        """Read a chunk; the last one gives each answer's first token."""
        import mlx.core as mx

        batch = self._reading
        if batch.needs_processing():
            done = batch.prompt_step()
            # Else the next chunks would be begun before this one is done, and none could be
            # cancelled.
            mx.eval([cache.state for cache in batch.prompt_cache])
            for prompt in self._read_by:
                prompt.seat.read = min(prompt.seat.read + done, len(prompt.tokens))
            if batch.needs_processing():
                return
        self._sampler.rows = list(batch.uids)
        written = batch.generate(self._sampler, self._ends, compute_logprobs=False)
        self._reading = None
        for prompt in self._read_by:
            prompt.seat.read = len(prompt.tokens)
        self._read_by = []
        if self._writing.uids:
            self._writing.extend(written)
        else:
            self._writing = written

    def _drop(self, uid: int) -> None:
        import mlx.core as mx

        self._sampler.draws.pop(uid, None)
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
            self._wired.enter_context(wired_limit(self._model, [self._stream]))


def can_batch(model: Any) -> bool:
    """Say whether a model's caches can be put together, as those of one batch are."""
    from mlx_vlm.models.cache import KVCache, make_prompt_cache

    caches = make_prompt_cache(model.language_model)
    return bool(caches) and all(type(cache) is KVCache for cache in caches)


def _others(embeds: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in embeds.items() if key != "inputs_embeds"}


def _padded(rows: Sequence[Any]) -> Any:
    """Return embeddings of different length as one array, padded on the left."""
    import mlx.core as mx

    longest = max(row.shape[1] for row in rows)
    return mx.concatenate(
        [mx.pad(row, ((0, 0), (longest - row.shape[1], 0), (0, 0))) for row in rows], axis=0
    )


