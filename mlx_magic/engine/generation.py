"""One question on its way to an answer, as everyone but the model sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlx_magic.engine.json_output import parse_json
from mlx_magic.engine.progress_callbacks import Observers
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import FinishReason, GenerationChunk, Timings, Usage, VisionResult
from mlx_magic.engine.stop_sequences import Stopped, StopSequences
from mlx_magic.engine.task import Clock, Progress, Task

if TYPE_CHECKING:
    from mlx_magic.images.opening import ImageInput

_log = logging.getLogger(__name__)

Sink = Callable[[GenerationChunk], None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a generation looks like at one moment.

    Attributes
    ----------
    progress : Progress
    text : str
        All text so far.
    prompt_tokens, prompt_read, completion_tokens : int
        Of the prompt, how many of these were read, and of the answer; 0 where not yet known.
    elapsed : float
        Seconds since the request.
    generation_tps : float
        Tokens a second that were written since the first; 0 before the second.
    """

    progress: Progress
    text: str
    prompt_tokens: int
    prompt_read: int
    completion_tokens: int
    elapsed: float
    generation_tps: float


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
    pictures : tuple of ImageInput
        Those whose thumbnails are made.
    """

    def __init__(
        self, request: GenerationRequest, *, clock: Clock, sink: Sink | None = None
    ) -> None:
        super().__init__(clock, timeout=request.timeout)
        self.request = request
        self.pictures: tuple[ImageInput, ...] = ()
        self._sink = sink
        self._stop_sequences = StopSequences(request.sampling.stop)
        self._parts: list[str] = []
        self._text_started = False
        self._last = GenerationChunk("queued")
        self._first_token_at: float | None = None
        self._last_token_at: float | None = None
        self._seen: tuple[str, ...] = ()
        self._observers = Observers(clock, self.snapshot)

    def observe(self, callback: OnProgress) -> Callable[[], None]:
        """Tell someone how far it is: at most 20 times a second, and when it has ended.

        Parameters
        ----------
        callback : callable
            See `Observers.add`.

        Returns
        -------
        callable
            Ends it.
        """
        return self._observers.add(callback)

    def prepared(self, request: GenerationRequest) -> None:
        """Set the request once its images are open; for the preparing thread."""
        self.request = request

    def make_thumbnails(self) -> None:
        """Make the images' thumbnails; for the preparing thread.

        After the model has begun: it need not wait for them, but the event loop
        must not spend its time on them either.
        """
        for image in self.request.images:
            image.thumbnail()
        self.pictures = self.request.images

    def report(self, chunk: GenerationChunk) -> None:
        """Take in one step of the model; for the working thread.

        Raises
        ------
        Cancelled
            When the generation has ended meanwhile.
        Stopped
            When the text completes a stop text: the answer ends before that.
        """
        if chunk.phase != self._progress.phase:
            self._enter(chunk.phase)
        self._seen = chunk.seen or self._seen
        stopped = False
        text = chunk.text
        if text:
            # Several tokenizers put a blank before the first word of an answer.
            text = text if self._text_started else text.lstrip()
            self._text_started = self._text_started or bool(text)
            text, stopped = self._stop_sequences.feed(text)
        if chunk.phase == "queued":
            self._advance(0, 0, note="waiting for memory")
        if chunk.phase == "vision" and chunk.seen:
            self._advance(0, 0, note=_looking(chunk.seen))
        if chunk.phase == "vision" and chunk.pictures:
            done, total = chunk.pictures_seen, chunk.pictures
            self._advance(done, total, note=_looking_at(done + 1, total, self._seen))
        if chunk.phase == "prefill":
            self._advance(chunk.prompt_read, chunk.prompt_tokens)
        self._show(chunk if text == chunk.text else replace(chunk, text=text))
        if stopped:
            raise Stopped

    def finish(self, reason: FinishReason) -> None:
        """Set the result from what was reported; for the working thread."""
        self._flush()
        self._finish(lambda: self._result(reason))

    def stopped(self) -> None:
        """End as cancelled or timed out, keeping what there is; for the working thread."""
        self._flush()
        super().stopped()

    def _flush(self) -> None:
        """Show what was held back as the possible beginning of a stop text."""
        if not self._ended and (text := self._stop_sequences.flush()):
            self._show(replace(self._last, text=text))

    def _show(self, chunk: GenerationChunk) -> None:
        with self._lock:
            # Together: who takes a snapshot is to see both or neither.
            self._last = chunk
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
                # The answer is not to be lost for its observer.
                _log.exception("A sink failed and gets nothing more.")
                self._sink = None
        self._changed()

    def _changed(self, *, at_end: bool = False) -> None:
        self._observers.tell(at_end=at_end)

    def snapshot(self) -> Snapshot:
        """Return what there is now; safe from any thread."""
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
        data, data_error = parse_json(text) if request.format == "json" else (None, None)
        return VisionResult(
            text=text,
            model=request.model,
            finish_reason=reason,
            data=data,
            data_error=data_error,
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
                # The first token belongs to prefill: decode made the others.
                generation_tps=_rate(max(last.completion_tokens - 1, 0), decode),
            ),
            peak_memory=last.peak_memory,
            prompt=request.prompt,
            format=request.format,
            seen=self._seen,
            stopped_in=None if requested_at is None else self._last_phase,
            stopping=None if requested_at is None else max(self._since - requested_at, 0.0),
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _looking(seen: tuple[str, ...]) -> str:
    """Say what the vision tower is looking at."""
    pictures = "the picture" if len(seen) == 1 else f"{len(seen)} pictures"
    return f"looking at {pictures} at {', '.join(dict.fromkeys(seen))}"


def _looking_at(number: int, pictures: int, seen: tuple[str, ...]) -> str:
    """Say which of several images it is at."""
    size = f" at {seen[0]}" if len(set(seen)) == 1 else ""
    return f"looking at picture {number} of {pictures}{size}"
