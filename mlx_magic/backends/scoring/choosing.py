"""Requests with choices: from the prompt to the probability of each choice."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

from mlx_magic.backends.adapter import ModelAdapter, Prompt
from mlx_magic.backends.base import Report
from mlx_magic.backends.batch_check.compare_rows import Budget
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.batching.admission import BatchLimits, MemoryAdmission
from mlx_magic.backends.batching.batch import MAX_DECODE_BATCH, Slot
from mlx_magic.backends.batching.forward import SHARED
from mlx_magic.backends.batching.model_batch import ModelBatch
from mlx_magic.backends.batching.prefill import PrefillBatch
from mlx_magic.backends.chat_templates import chat_messages, think_switch
from mlx_magic.backends.dispatch import Dispatch
from mlx_magic.backends.prefix_cache.prompt_cache import CachedPrefix
from mlx_magic.backends.prefix_cache.radix_tree import cut_out
from mlx_magic.backends.scoring.rows import (
    MOST_POSITIONS,
    Answer,
    ForcedAnswer,
    ReadPrompt,
    RowLimits,
    Scorer,
    shares,
)
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import Choices, GenerationRequest, Sampling
from mlx_magic.engine.result import FinishReason, GenerationChunk
from mlx_magic.errors import GenerationError

YES, NO = "Yes", "No"

LABEL_QUESTION = '{prompt}\nDoes the label "{label}" apply? Answer with Yes or No.'
"""The question about each label of a request with ``multiple``."""


class ChoiceModel:
    """Scores the choices of requests to one model.

    Nothing is generated: the prompt is read once, and the choices as rows after it.

    Parameters
    ----------
    name : str
        Name of the model, for messages.
    adapter : ModelAdapter
    answering : Dispatch
    admission : MemoryAdmission
    chunk : int
        Prompt tokens per prefill chunk.
    new_caches : callable
        Takes ``kv_bits``; returns empty caches.
    fit_context : callable
        Takes the request and its prompt, and the least number of tokens after it; refuses a prompt
        that does not fit into the model's context.
    hint : callable
        Takes a prompt; returns a line about what it costs.
    """

    def __init__(
        self,
        name: str,
        adapter: ModelAdapter,
        answering: Dispatch,
        admission: MemoryAdmission,
        *,
        chunk: int,
        new_caches: Callable[[int | None], list[Any]],
        fit_context: Callable[[ActiveRequest, Prompt, int], None],
        hint: Callable[[Prompt], str],
    ) -> None:
        self._name = name
        self._adapter: Any = adapter
        self._answering: Any = answering
        self._admission = admission
        self._chunk = chunk
        self._new_caches: Any = new_caches
        self._fit_context: Any = fit_context
        self._hint: Any = hint

    def close(self) -> None:
        """Release the model."""
        self._adapter = self._answering = None
        self._new_caches = self._fit_context = self._hint = None

    def choose(
        self, request: GenerationRequest, cancel: CancelToken, report: Report
    ) -> Generator[None, None, FinishReason]:
        """Score the choices of a request, and report the most probable one.

        Raises
        ------
        Cancelled
        GenerationError
            The model cannot answer without thoughts, or a choice has a control token.
        """
        assert request.choices is not None
        if request.think is None and self._adapter.reasons:
            request = replace(request, think=False)
        collected = _Collected(report)
        questions = label_questions(request) if request.multiple else [request]
        for at, question in enumerate(questions):
            # Later questions share the image and most of the prompt: one phase for all of them.
            collected.begin(at, counts_labels=request.multiple)
            found = yield from self._scored(question, cancel, collected.report)
            collected.add(found[:1] if request.multiple else found)
        collected.finish(request)
        return "stop"

    def _scored(
        self, request: GenerationRequest, cancel: CancelToken, report: Report
    ) -> Generator[None, None, tuple[float, ...]]:
        """Return the probability of each choice of a request."""
        assert request.choices is not None
        adapter = self._adapter
        active = ActiveRequest(request, cancel, report, images=len(chat_messages.images(request)))
        report(GenerationChunk("vision" if active.images else "prefill"))
        kv_cache.require_bits(request.kv_bits, self._admission.shape, self._name)
        prompt = yield from self._answering.make_prompt_in_order(
            adapter.prompt(request, cancel), cancel
        )
        thoughts = adapter.reasoning(prompt)
        if thoughts is not None and thoughts.is_open:
            raise think_switch.always_thinks(self._name)
        answers = self._answers(prompt, request.choices.labels)
        longest = max(len(answer.read) for answer in answers)
        active.prompt_tokens, active.image_tokens = len(prompt.tokens), prompt.image_tokens
        active.request = replace(
            request, sampling=Sampling(max_tokens=longest + 1, temperature=0.0)
        )
        self._fit_context(active, prompt, longest)
        if self._answering.policy.possible:
            # Rows are only batched once the weights were compared.
            yield from self._answering.compare_weights(Budget(None), cancel)
        limits = self._row_limits(active, longest)
        batch_limits, held = _held_limits()
        admitted = yield from self._admission.reserve(
            batch_limits,
            prompt_tokens=active.prompt_tokens,
            image_tokens=active.image_tokens,
            max_tokens=longest,
            kv_bits=request.kv_bits,
            rows=limits.most + 1,
            positions=max(limits.most, min(MOST_POSITIONS, limits.most * longest)),
            cancel=cancel,
            on_wait=active.report_queued,
        )
        with admitted as active.reservation, adapter.keyed(request, prompt):
            seen = adapter.seen_sizes(request, prompt)
            if seen is not None:
                report(GenerationChunk("vision", seen=seen, hint=self._hint(prompt)))
            scores: list[float] = []

            def batched(
                batch: ModelBatch, reported: list[int]
            ) -> Generator[None, None, FinishReason]:
                shared = batch is self._answering.batch
                reading = self._rows(prompt, active, answers, limits, held, shared=shared)
                scores.extend((yield from reading))
                return "stop"

            def alone() -> Generator[None, None, FinishReason]:
                scores.extend((yield from self._forced(prompt, active, answers)))
                return "stop"

            yield from self._answering.answer(active, alone, batched)
        return self._shares(scores)

    def _shares(self, scores: Sequence[float]) -> tuple[float, ...]:
        found = shares(scores)
        if any(each != each for each in found):
            raise GenerationError(
                f"{self._name}: its numbers overflowed while it read the choices: use a "
                "checkpoint of higher precision.",
                model=self._name,
            )
        return found

    def _answers(self, prompt: Prompt, labels: Sequence[str]) -> list[Answer]:
        found = self._adapter.answer_tokens(prompt, labels)
        answers = [
            Answer((*tokens, *end), not end)
            for tokens, end in zip(found.answers, found.ends, strict=True)
        ]
        known: dict[tuple[int, ...], str] = {}
        for answer, label in zip(answers, labels, strict=True):
            if answer.tokens in known:
                raise GenerationError(
                    f"{self._name}: the choices {known[answer.tokens]!r} and {label!r} are the "
                    "same for its tokenizer: change one.",
                    model=self._name,
                )
            known[answer.tokens] = label
        return answers

    def _row_limits(self, active: ActiveRequest, longest: int) -> RowLimits:
        """Return how rows may be read: together only where batched rows are known to be right."""
        policy, bits = self._answering.policy, active.request.kv_bits
        plain = self._answering.batch is not None and self._answering.batch.plain
        wide = plain and bits is None and policy.verdict.chunks
        if not policy.together or bits is not None:
            return RowLimits(1, wide)
        most = self._admission.rows(
            prompt_tokens=active.prompt_tokens, max_tokens=longest, most=MAX_DECODE_BATCH
        )
        return RowLimits(most, wide)

    def _rows(
        self,
        prompt: Prompt,
        active: ActiveRequest,
        answers: Sequence[Answer],
        limits: RowLimits,
        held: list[Scorer],
        *,
        shared: bool,
    ) -> Generator[None, None, list[float]]:
        """Score answers as rows after the prompt, which is read once."""
        forward = self._adapter.forward
        with SHARED.held(forward.wired()):
            start = self._adapter.start(prompt) if shared else CachedPrefix()
            read = yield from self._read(prompt, active, start)
            scorer = Scorer(forward, read, limits)
            held.append(scorer)
            active.prefilling(False)
            active.report_scored(0)
            try:
                scores = yield from scorer.scores(answers, active.cancel, active.report_scored)
            finally:
                held.clear()
            # Not before: a cancelled or failed request must not be cached.
            if shared and not self._adapter.prompt_cache.takes_states:
                rows = cut_out(read.caches, [(0, start.count)])[0]
                self._adapter.prompt_cache.keep(start, [], rows)
            return scores

    def _read(
        self, prompt: Prompt, active: ActiveRequest, start: CachedPrefix
    ) -> Generator[None, None, ReadPrompt]:
        """Read a prompt in chunks, one per slice."""
        import mlx.core as mx

        adapter, forward = self._adapter, self._adapter.forward
        inputs = adapter.embed(prompt, start, active)
        active.cached_tokens = start.count
        active.report_prefill()
        yield
        slot = Slot(
            0,
            tokens=active.pad_tokens(prompt.tokens)[start.count :],
            inputs=inputs,
            checkpoint_at=self._checkpoint(prompt, start, active),
            on_checkpoint=lambda caches: adapter.prompt_cache.keep_state(
                start, prompt.image_end, [], caches
            ),
        )
        with mx.stream(forward.stream):
            prefill = PrefillBatch(
                forward,
                [slot],
                start.caches(forward.new_caches) or self._new_caches(active.request.kv_bits),
                chunk=self._chunk,
                joint_tokens=adapter.joint_tokens,
            )
        del inputs
        while True:
            active.cancel.checkpoint()
            with mx.stream(forward.stream):
                logits = prefill.step()
                if logits is not None:
                    offsets = prefill.position_offsets()
                    mx.eval(logits, kv_cache.states(prefill.caches))
                    return ReadPrompt(prefill.caches, logits, offsets)
            active.report_prefill(slot.read)
            yield

    def _checkpoint(self, prompt: Prompt, start: CachedPrefix, active: ActiveRequest) -> int:
        """Return where the state of the caches is worth keeping: at the end of the last image."""
        known = start.prompt_keys is not None and len(prompt.tokens) == active.prompt_tokens
        if not self._adapter.prompt_cache.takes_states or not known:
            return 0
        return max(prompt.image_end - start.count, 0)

    def _forced(
        self, prompt: Prompt, active: ActiveRequest, answers: Sequence[Answer]
    ) -> Generator[None, None, list[float]]:
        """Score answers through the library's own generation, each with a prefill of its own."""
        forward, scores = self._adapter.forward, list[float]()
        for answer in answers:
            forced = ForcedAnswer(answer, forward.is_stop_token)
            caches = self._new_caches(active.request.kv_bits)
            with self._adapter.streaming(prompt, active, caches, [forced]) as stream:
                for _ in stream:
                    active.cancel.checkpoint()
                    if forced.done:
                        break
                    yield
            if not forced.done:
                raise GenerationError(
                    f"{self._name}: {self._adapter.library} ended an answer before its end, so "
                    "that choices cannot be scored: choose another model.",
                    model=self._name,
                )
            scores.append(forced.score())
            active.report_scored(len(scores))
            yield
        return scores


def label_questions(request: GenerationRequest) -> list[GenerationRequest]:
    """Return a question about each label of a request with ``multiple``, yes against no."""
    assert request.choices is not None
    return [
        replace(
            request,
            prompt=LABEL_QUESTION.format(prompt=request.prompt, label=label),
            choices=Choices((YES, NO)),
            multiple=False,
        )
        for label in request.choices.labels
    ]


def _held_limits() -> tuple[BatchLimits, list[Scorer]]:
    """Return limits of a request with rows of its own, and a list for what holds these."""
    held: list[Scorer] = []
    return BatchLimits(1, lambda: sum(scorer.nbytes for scorer in held)), held


class _Collected:
    """Reports the progress of one request that may ask several questions.

    Parameters
    ----------
    report : callable
        Takes each `GenerationChunk`.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._probabilities: list[float] = []
        self._before = self._last = GenerationChunk("queued")
        self._number = 0
        self._counts_labels = False

    def begin(self, number: int, *, counts_labels: bool) -> None:
        """Begin a question: its tokens are added to those of the questions before."""
        self._number, self._counts_labels = number, counts_labels
        self._before = self._last

    def report(self, chunk: GenerationChunk) -> None:
        """Report a chunk of the current question."""
        before = self._before
        chunk = replace(
            chunk,
            prompt_read=before.prompt_read + chunk.prompt_read,
            prompt_tokens=before.prompt_tokens + chunk.prompt_tokens,
            image_tokens=before.image_tokens + chunk.image_tokens,
            cached_tokens=before.cached_tokens + chunk.cached_tokens,
            scored=self._number if self._counts_labels else chunk.scored,
        )
        if self._number and chunk.phase != "queued":
            chunk = replace(chunk, phase="decode", seen=(), hint="")
        self._last = chunk
        self._report(chunk)

    def add(self, probabilities: Sequence[float]) -> None:
        """Take the probabilities of the current question."""
        self._probabilities += probabilities

    def finish(self, request: GenerationRequest) -> None:
        """Report the answer."""
        assert request.choices is not None
        found = tuple(self._probabilities)
        labels = [request.choices.labels[at] for at in request.chosen(found)]
        self._report(
            replace(
                self._last,
                phase="decode",
                text=", ".join(labels),
                scored=len(found),
                probabilities=found,
            )
        )
