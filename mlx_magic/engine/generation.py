"""The handle of one request: its state, progress and result, independent of the model.

Progress callbacks are called at most 20 times a second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mlx_magic.engine.json_output import parse_json
from mlx_magic.engine.places.grounding import Grounding
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import FinishReason, GenerationChunk, Timings, Usage, VisionResult
from mlx_magic.engine.stop_sequences import Stopped, StopSequences
from mlx_magic.engine.task import Clock, Progress, Task

if TYPE_CHECKING:
    from mlx_magic.images.opening import ImageInput


S = TypeVar("S")

INTERVAL = 0.05
"""Seconds between two calls of one observer."""


@dataclass(slots=True, eq=False)
class _Observer(Generic[S]):
    callback: Callable[[S], object]
    last: float = float("-inf")


class Observers(Generic[S]):
    """Calls observers one at a time, each with the newest snapshot.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Held during the calls, so that no observer gets an older snapshot after a newer one.
        # Never taken while the task's lock is held.
        self._lock = threading.RLock()
        self._observers: list[_Observer[S]] = []

    def add(self, callback: Callable[[S], object]) -> Callable[[], None]:
        """Add an observer.

        Parameters
        ----------
        callback : callable
            Called with a snapshot, on the thread that reports progress; must be quick. One that
            raises is logged and not called again.

        Returns
        -------
        callable
            Removes the observer.
        """
        observer = _Observer(callback)
        with self._lock:
            self._observers.append(observer)

        def remove() -> None:
            with self._lock:
                self._observers = [each for each in self._observers if each is not observer]

        return remove

    def notify(self, snapshot: Callable[[], S], *, at_end: bool = False) -> None:
        """Call the observers that are due; at the end, all of them.

        Parameters
        ----------
        snapshot : callable
            Returns the snapshot for the observers; safe from any thread. It is not kept: that of a
            task would hold the task, and with it the images, until the next garbage collection.
        at_end : bool
        """
        if not self._observers:
            return
        with self._lock:
            now = self._clock()
            for observer in list(self._observers):
                if at_end or now - observer.last >= INTERVAL:
                    observer.last = now
                    self._call(observer, snapshot)

    def _call(self, observer: _Observer[S], snapshot: Callable[[], S]) -> None:
        try:
            observer.callback(snapshot())
        except BaseException:
            # BaseException, since asyncio's CancelledError is not an Exception: a failing observer
            # must not end the task.
            _log.exception("An observer failed and is not called again.")
            self._observers = [each for each in self._observers if each is not observer]


_log = logging.getLogger(__name__)

Sink = Callable[[GenerationChunk], None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a generation at one moment.

    Attributes
    ----------
    progress : Progress
    text : str
        All text so far, without thoughts.
    prompt_tokens, prompt_read, completion_tokens : int
        Tokens of the prompt, of its part in the KV cache, and of the answer; 0 if not yet known.
    elapsed : float
        Seconds since the request.
    generation_tps : float
        Tokens per second since the first token; 0 before the second one.
    reasoning : str
        All thoughts so far of a model that reasons.
    """

    progress: Progress
    text: str
    prompt_tokens: int
    prompt_read: int
    completion_tokens: int
    elapsed: float
    generation_tps: float
    reasoning: str = ""


OnProgress = Callable[[Snapshot], object]


class Generation(Task[VisionResult]):
    """The handle of one request.

    Parameters
    ----------
    request : GenerationRequest
    clock : callable
        Seconds, monotonic.
    sink : callable, optional
        Called on the inference thread with each `GenerationChunk`; must be quick.

    Attributes
    ----------
    request : GenerationRequest
    images : tuple of ImageInput
        The images whose thumbnails have been made.
    """

    def __init__(
        self, request: GenerationRequest, *, clock: Clock, sink: Sink | None = None
    ) -> None:
        super().__init__(clock, timeout=request.timeout)
        self.request = request
        self.images: tuple[ImageInput, ...] = ()
        self._sink = sink
        # A choice is one of the given answers, whole.
        self._stop_sequences = StopSequences(() if request.choices else request.sampling.stop)
        self._parts: list[str] = []
        self._thoughts: list[str] = []
        self._text_started = False
        self._last = GenerationChunk("queued")
        self._first_token_at: float | None = None
        self._last_token_at: float | None = None
        self._seen: tuple[str, ...] = ()
        self._hint = ""
        self._grounding: Grounding | None = None
        self._marked = ""
        self._cut_by_stop = False
        self._observers = Observers[Snapshot](clock)

    def observe(self, callback: OnProgress) -> Callable[[], None]:
        """Call `callback` with snapshots: at most 20 times a second, and at the end.

        Parameters
        ----------
        callback : callable
            See `Observers.add`.

        Returns
        -------
        callable
            Removes the callback.
        """
        return self._observers.add(callback)

    def prepared(self, request: GenerationRequest) -> None:
        """Set the request once its images are open; for the preparing thread."""
        self.request = request

    def is_before_first_token(self) -> bool:
        """Whether the model still reads the question. A load does not count."""
        return self._progress.phase in ("queued", "vision", "prefill")

    def make_thumbnails(self) -> None:
        """Make the images' thumbnails; for the preparing thread.

        Called after the model has started, so that it does not wait for them. The event loop
        must not be blocked by them either.
        """
        for image in self.request.images:
            image.thumbnail()
        self.images = self.request.images

    def report(self, chunk: GenerationChunk) -> None:
        """Record one step of the model; for the working thread.

        Raises
        ------
        Cancelled
            When the generation has ended in the meantime.
        Stopped
            When the text completes a stop sequence: the answer ends before that.
        """
        if chunk.phase != self._progress.phase:
            self._enter(chunk.phase)
        self._seen = chunk.seen or self._seen
        self._grounding = chunk.grounding or self._grounding
        self._marked = chunk.marked or self._marked
        stopped = False
        if chunk.all_reasoning:
            self._move_text_to_thoughts()
        text, reasoning = chunk.text, chunk.reasoning
        if reasoning and not self._thoughts:
            reasoning = reasoning.lstrip()
        if text:
            # Several tokenizers put a space before the first word of an answer.
            text = text if self._text_started else text.lstrip()
            self._text_started = self._text_started or bool(text)
            text, stopped = self._stop_sequences.feed(text)
        if chunk.phase == "queued":
            self._advance(0, 0, note="waiting for memory")
        if chunk.phase == "vision" and chunk.seen:
            self._hint = chunk.hint
            note = _vision_note(chunk.seen)
            self._advance(0, 0, note=f"{note} · {chunk.hint}" if chunk.hint else note)
        if chunk.phase == "vision" and chunk.image_count:
            done, total = chunk.images_seen, chunk.image_count
            self._advance(done, total, note=_vision_progress_note(done + 1, total, self._seen))
        if chunk.phase == "prefill":
            note = f"reading the prompt ({self._hint})" if self._hint else ""
            self._advance(chunk.prompt_read, chunk.prompt_tokens, note=note)
        if chunk.phase == "decode" and self.request.choices is not None:
            count = len(self.request.choices.labels)
            self._advance(0, 0, note=f"scored {chunk.scored:,} of {count:,} choices")
        changed = text != chunk.text or reasoning != chunk.reasoning
        self._show(replace(chunk, text=text, reasoning=reasoning) if changed else chunk)
        if stopped:
            self._cut_by_stop = True
            raise Stopped

    def finish(self, reason: FinishReason) -> None:
        """Set the result from the reported chunks; for the working thread."""
        self._flush()
        self._finish(lambda: self._result(reason))

    def stopped(self) -> None:
        """End as cancelled or timed out, with the text so far; for the working thread."""
        self._flush()
        super().stopped()

    def _flush(self) -> None:
        """Report the text that was held back as a possible start of a stop sequence."""
        if not self._ended and (text := self._stop_sequences.flush()):
            self._show(replace(self._last, text=text, reasoning="", all_reasoning=False))

    def _move_text_to_thoughts(self) -> None:
        """Take all text so far for thoughts: the model had left out the mark before them."""
        with self._lock:
            text = [*self._parts, self._stop_sequences.flush()]
            self._thoughts += filter(None, text)
            self._parts.clear()
            self._text_started = False

    def _show(self, chunk: GenerationChunk) -> None:
        with self._lock:
            # Under one lock: a snapshot must contain both or neither.
            self._last = chunk
            if chunk.reasoning:
                self._thoughts.append(chunk.reasoning)
            if self._thoughts:
                self._advance(0, 0, note="" if self._text_started else "thinking")
            if chunk.text:
                self._parts.append(chunk.text)
            if chunk.completion_tokens:
                self._last_token_at = self._clock()
                if self._first_token_at is None:
                    self._first_token_at = self._last_token_at
        if self._sink is not None:
            try:
                self._sink(chunk)
            except BaseException:
                # A failing sink must not end the answer.
                _log.exception("A sink failed and is not called again.")
                self._sink = None
        self._observers.notify(self.snapshot)

    def _changed(self, *, at_end: bool = False) -> None:
        self._observers.notify(self.snapshot, at_end=at_end)

    def snapshot(self) -> Snapshot:
        """Return the current state; safe from any thread."""
        with self._lock:
            last, first_at, last_at = self._last, self._first_token_at, self._last_token_at
            seconds = 0.0 if first_at is None or last_at is None else last_at - first_at
            return Snapshot(
                self._progress,
                "".join(self._parts),
                prompt_tokens=last.prompt_tokens,
                prompt_read=last.prompt_read,
                completion_tokens=last.completion_tokens,
                elapsed=self.elapsed,
                generation_tps=_rate(last.completion_tokens - 1, seconds),
                # Its end may still grow: a view must not show what is taken away again.
                reasoning="".join(self._thoughts).rstrip(),
            )

    def _cancelled_outcome(self) -> VisionResult:
        return self._result(self.token.cause or "cancelled")

    def _result(self, reason: FinishReason) -> VisionResult:
        last, seconds_in, request = self._last, self._spent, self.request
        prefill_seconds = seconds_in.get("vision", 0.0) + seconds_in.get("prefill", 0.0)
        decode = seconds_in.get("decode", 0.0)
        first_at = self._first_token_at
        text = "".join(self._parts)
        requested_at = self.token.requested_at if reason in ("cancelled", "timeout") else None
        answer = self._parsed(text, reason)
        return VisionResult(
            text=text,
            model=request.model,
            finish_reason=reason,
            data=answer.data,
            data_error=answer.error,
            images=request.images,
            usage=Usage(
                prompt_tokens=last.prompt_tokens,
                image_tokens=last.image_tokens,
                cached_tokens=last.cached_tokens,
                completion_tokens=last.completion_tokens,
            ),
            timings=Timings(
                queued=seconds_in.get("queued", 0.0),
                load=seconds_in.get("loading", 0.0) + seconds_in.get("downloading", 0.0),
                vision=seconds_in.get("vision", 0.0),
                prefill=seconds_in.get("prefill", 0.0),
                decode=decode,
                time_to_first_token=None if first_at is None else first_at - self.created,
                prompt_tps=_rate(last.prompt_tokens - last.cached_tokens, prefill_seconds),
                # The first token is a product of prefill, not of decode.
                generation_tps=_rate(max(last.completion_tokens - 1, 0), decode),
            ),
            peak_memory=last.peak_memory,
            prompt=request.prompt,
            format=request.format,
            seen=self._seen,
            stopped_in=None if requested_at is None else self._last_phase,
            stopping=None if requested_at is None else max(self._since - requested_at, 0.0),
            reasoning="".join(self._thoughts).strip(),
            grounding=self._marked_grounding(),
            partial=answer.partial,
            complete=answer.complete,
            **choice_fields(request, last.probabilities),
        )

    def _marked_grounding(self) -> Grounding | None:
        # What was marked among thoughts is no part of the answer.
        if self._grounding is None or not self._marked or self._thoughts:
            return self._grounding
        marked = self._marked
        for stop in self.request.sampling.stop:
            marked = marked.partition(stop)[0]
        return replace(self._grounding, marked=marked)

    def _parsed(self, text: str, reason: FinishReason) -> _Parsed:
        """Return what an answer contains."""
        schema = self.request.schema
        if schema is None:
            value, problem = parse_json(text) if self.request.format == "json" else (None, None)
            return _Parsed(value, problem, complete=reason == "stop")
        # Of all JSON only a number does not show its end.
        ended = reason == "stop" and not self._cut_by_stop
        if not ended and text.rstrip()[-1:] in (*"0123456789", ""):
            error: str | None = "it was cut before its end"
        else:
            data, error = schema.read(text)
            if error is None:
                return _Parsed(data, None)
        if not ended:
            error = _CUT.get(reason, "it was cut before its end")
        return _Parsed(None, error, schema.partial(text), complete=False)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """The data of an answer, or why there is none; see `VisionResult`."""

    data: object = None
    error: str | None = None
    partial: object = None
    complete: bool = True


_CUT: dict[FinishReason, str] = {
    "length": "it was cut off at max_tokens",
    "cancelled": "it was cancelled before its end",
    "timeout": "it timed out before its end",
    "stop": "a stop sequence ended it",
}


def choice_fields(request: GenerationRequest, probabilities: tuple[float, ...]) -> dict[str, Any]:
    """Return the fields of a result that choices have; none before all are scored."""
    if request.choices is None or not probabilities:
        return {}
    values = request.choices.values
    best = tuple(values[at] for at in request.chosen(probabilities))
    sure = min(max(p, 1 - p) for p in probabilities) if request.multiple else max(probabilities)
    return {
        "choice": best if request.multiple else best[0],
        "probabilities": dict(zip(values, probabilities, strict=True)),
        "confidence": sure,
    }


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _vision_note(seen: tuple[str, ...]) -> str:
    """Return the note of the vision phase."""
    seen_images = "the picture" if len(seen) == 1 else f"{len(seen)} pictures"
    return f"looking at {seen_images} at {', '.join(dict.fromkeys(seen))}"


def _vision_progress_note(number: int, total: int, seen: tuple[str, ...]) -> str:
    """Return the note of the vision phase for one of several images."""
    size = f" at {seen[0]}" if len(set(seen)) == 1 else ""
    return f"looking at picture {number} of {total}{size}"
