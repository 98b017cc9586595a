"""Public fakes for tests: a scripted backend, a recording sink, a manual clock.

They allow testing a notebook tool without weights and without sleeping::

    session = scripted_session("Hello there.")
    session.start(GenerationRequest(prompt="Hi", model=folder)).future.result()
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import Literal

from mlx_magic.backends.base import LoadProgress, PrefetchFunction, Report
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.device import platform
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.engine import WAIT, Engine, Steps, StepSignal
from mlx_magic.engine.places.grounding import Grounding
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import FinishReason, GenerationChunk
from mlx_magic.engine.task import Clock
from mlx_magic.model_pool.pool import ModelPool
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.session import Session

HoldPhase = Literal["loading", "vision", "prefill", "decode"]

# Seconds between two checks of the cancel token in a held decode: a pace, not synchronization.
# A held answer must not reach the display limit of a page while a slow machine reloads it.
_PACE = 0.02


class ManualClock:
    """A clock that changes only by `advance`.

    Attributes
    ----------
    now : float
        Seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time that was set, in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Add `seconds` to the time."""
        self.now += seconds


class RecordingSink:
    """A sink that keeps every chunk.

    Attributes
    ----------
    chunks : list of GenerationChunk
    """

    def __init__(self) -> None:
        self.chunks: list[GenerationChunk] = []

    def __call__(self, chunk: GenerationChunk) -> None:
        """Keep a chunk."""
        self.chunks.append(chunk)

    @property
    def text(self) -> str:
        """All text so far, without thoughts."""
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def reasoning(self) -> str:
        """All thoughts so far."""
        return "".join(chunk.reasoning for chunk in self.chunks)


class ScriptedBackend:
    """A backend whose models answer with a given text. Loads any checkpoint.

    To a question with choices they answer with the first one: each choice is three times as
    probable as the next.

    Parameters
    ----------
    pieces : str or iterable of str
        The answer; a str is split after each space.
    hold : {"loading", "vision", "prefill", "decode"}, optional
        Stay in this phase until cancelled or released; "decode" repeats the
        answer's pieces until then.
    error : BaseException, optional
        Raised instead of the first piece. A ``SystemExit`` ends the inference thread.
    reasoning : str or iterable of str
        Thoughts before the answer, split in the same way.

    Attributes
    ----------
    library : str
        Name of the library in messages.
    requests : list of GenerationRequest
        The requests, in order.
    loads, closed : int
        Number of loaded and of closed models.
    active : int
        Bytes of the models in memory.
    total : int
        Bytes that the device lets models use; 0 is unknown.
    threads : set of str
        Names of the threads that called the backend.
    prefetch : callable or None
        See `LoadedModel.prefetch`.
    """

    library = "the script"

    def __init__(
        self,
        pieces: str | Iterable[str] = "An answer.",
        *,
        hold: HoldPhase | None = None,
        error: BaseException | None = None,
        reasoning: str | Iterable[str] = (),
    ) -> None:
        self.pieces = _words(pieces)
        self.reasoning = _words(reasoning)
        self.hold = hold
        self.error = error
        self.requests: list[GenerationRequest] = []
        self.loads = self.closed = self.active = 0
        self.total = platform.total_memory()
        self.threads: set[str] = set()
        self.prefetch: PrefetchFunction | None = None
        self._released = threading.Event()

    def estimate(self, checkpoint: Checkpoint) -> int:
        """Return the bytes of the weights on disk."""
        return checkpoint.weight_bytes

    def memory(self) -> platform.Memory:
        """Return the memory counters of the fake device."""
        return platform.Memory(self.active, 0, self.total)

    def release(self) -> None:
        """End the held phase."""
        self._released.set()

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        progress: LoadProgress,
    ) -> Generator[StepSignal | None, None, ScriptedModel]:
        """Load in two steps. See `Backend.load`."""
        self.threads.add(threading.current_thread().name)
        progress(0, checkpoint.weight_bytes, "loading weights")
        yield None
        cancel.checkpoint()
        if self.hold == "loading":
            yield from self.held(cancel)
        progress(checkpoint.weight_bytes, checkpoint.weight_bytes, "loading weights")
        yield None
        self.loads += 1
        grounding = Grounding.of_config(checkpoint.config)
        return ScriptedModel(self, checkpoint.weight_bytes, grounding)

    def held(self, cancel: CancelToken) -> Steps:
        """Wait for `release`; the token is checked in each round."""
        while not self._released.is_set():
            cancel.checkpoint()
            yield WAIT

    @property
    def is_released(self) -> bool:
        """Whether `release` was called."""
        return self._released.is_set()


class ScriptedModel:
    """A model of a `ScriptedBackend`."""

    def __init__(
        self, backend: ScriptedBackend, nbytes: int, grounding: Grounding | None = None
    ) -> None:
        self._backend = backend
        self._nbytes = nbytes
        self._grounding = grounding or Grounding()
        backend.active += nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, from the checkpoint."""
        return self._nbytes

    @property
    def together(self) -> Verdict:
        """All requests can be batched."""
        return Verdict(True, True)

    @property
    def reuse(self) -> CacheStats:
        """Zero counters: nothing is cached."""
        return CacheStats()

    def warm_up(
        self, *, cancel: CancelToken, progress: LoadProgress
    ) -> Generator[StepSignal | None, None, None]:
        """Do nothing: a script compiles no kernels."""
        yield from ()

    @property
    def prefetch(self) -> PrefetchFunction | None:
        """The backend's `prefetch`, which tests may set."""
        return self._backend.prefetch

    def forget(self) -> int:
        """Return 0: nothing is cached."""
        return 0

    def close(self) -> None:
        """Count the close, and subtract the bytes of the weights."""
        self._backend.closed += 1
        self._backend.active -= self._nbytes

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[StepSignal | None, None, FinishReason]:
        """Follow the script. See `LoadedModel.generate`."""
        script = self._backend
        script.threads.add(threading.current_thread().name)
        script.requests.append(request)
        turns = request.history
        texts = [request.prompt, *(t for turn in turns for t in (turn.prompt, turn.answer))]
        prompt_tokens = sum(len(text.split()) for text in texts)
        images = len(request.images) + sum(len(turn.images) for turn in turns)
        if images:
            earlier = images - len(request.images)
            grounding = replace(self._grounding, earlier_images=earlier)
            report(GenerationChunk("vision", grounding=grounding))
            yield from self._pause("vision", cancel)
        report(GenerationChunk("prefill", prompt_tokens=prompt_tokens))
        yield from self._pause("prefill", cancel)
        if script.error is not None:
            raise script.error
        if request.choices is not None:
            yield from self._pause("decode", cancel)
            report(_chosen(request, prompt_tokens))
            return "stop"
        thoughts = len(script.reasoning)
        for count, piece in enumerate(self._pieces(), start=1):
            thinks = count <= thoughts
            report(
                GenerationChunk(
                    "decode",
                    text="" if thinks else piece,
                    reasoning=piece if thinks else "",
                    prompt_read=prompt_tokens,
                    prompt_tokens=prompt_tokens,
                    image_tokens=16 * images,
                    completion_tokens=count,
                )
            )
            if count >= request.sampling.max_tokens:
                return "length"
            waits = script.hold == "decode" and not script.is_released
            if waits and count >= thoughts + len(script.pieces):
                cancel.wait(_PACE)
            cancel.checkpoint()
            yield None
        return "stop"

    def _pause(
        self, phase: HoldPhase, cancel: CancelToken
    ) -> Generator[StepSignal | None, None, None]:
        cancel.checkpoint()
        yield None
        if self._backend.hold == phase:
            yield from self._backend.held(cancel)

    def _pieces(self) -> Iterable[str]:
        yield from self._backend.reasoning
        yield from self._backend.pieces
        while self._backend.hold == "decode" and not self._backend.is_released:
            yield from self._backend.pieces


def _chosen(request: GenerationRequest, prompt_tokens: int) -> GenerationChunk:
    """Return the chunk of a choice: the first one is the most probable, 2/3 and more."""
    assert request.choices is not None
    labels = request.choices.labels
    weights = [3.0**-at for at in range(len(labels))]
    total = 1.0 if request.multiple else sum(weights)
    probabilities = tuple(weight / total for weight in weights)
    text = ", ".join(labels[at] for at in request.chosen(probabilities))
    return GenerationChunk(
        "decode",
        text=text,
        prompt_read=prompt_tokens,
        prompt_tokens=prompt_tokens,
        scored=len(labels),
        probabilities=probabilities,
    )


def _words(pieces: str | Iterable[str]) -> list[str]:
    words = pieces.replace(" ", " \0").split("\0") if isinstance(pieces, str) else pieces
    return [piece for piece in words if piece]


def scripted_session(
    pieces: str | Iterable[str] = "An answer.",
    *,
    hold: HoldPhase | None = None,
    backend: ScriptedBackend | None = None,
    threaded: bool = True,
    clock: Clock = time.perf_counter,
    reasoning: str | Iterable[str] = (),
) -> Session:
    """Return a session whose models, of either kind, follow a script.

    Parameters
    ----------
    pieces, hold, reasoning
        For a new `ScriptedBackend`.
    backend : ScriptedBackend, optional
        Use this one instead.
    threaded : bool
        False starts no engine thread: call ``session.engine.step()``.
    clock : callable
        Seconds, monotonic; a `ManualClock` for deadlines.
    """
    script = backend or ScriptedBackend(pieces, hold=hold, reasoning=reasoning)
    engine = Engine(threaded=threaded)
    pool = ModelPool(engine, {"vision": script, "text": script}, clock=clock, memory=script.memory)
    return Session(engine, pool, clock=clock)


def use_scripted(
    pieces: str | Iterable[str] = "An answer.",
    *,
    hold: HoldPhase | None = None,
    reasoning: str | Iterable[str] = (),
) -> ScriptedBackend:
    """Replace this process's session by a scripted one, for kernels under test.

    Returns
    -------
    ScriptedBackend
    """
    from mlx_magic import default_session

    script = ScriptedBackend(pieces, hold=hold, reasoning=reasoning)
    before = default_session.replace_current(scripted_session(backend=script))
    if before is not None:
        before.close()
    return script
