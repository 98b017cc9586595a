"""A session that cancels its requests at planned events, and counts what remains of them."""

from __future__ import annotations

import gc
import threading
import time
from functools import partial

from benchmarks.endurance_plan import Event, Plan
from mlx_magic.backends.base import Backend
from mlx_magic.backends.device import platform
from mlx_magic.backends.library_errors import preparing_error
from mlx_magic.backends.text.backend import TextBackend
from mlx_magic.backends.vision.backend import VisionBackend
from mlx_magic.engine.engine import Engine
from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import DEMO, Exchange, GenerationRequest
from mlx_magic.engine.result import GenerationChunk, Phase
from mlx_magic.images.opening import take_images
from mlx_magic.model_pool.pool import ModelPool
from mlx_magic.session import Session

PATIENCE = 120.0
"""Seconds without any outcome after which somebody is lost."""


class Cuttable(Generation):
    """A request that is cancelled at its planned event."""

    def __init__(self, request: GenerationRequest, plan: Plan) -> None:
        super().__init__(request, clock=time.perf_counter, sink=self._look)
        self._plan = plan

    def happens(self, event: Event, token: int = 0) -> None:
        """Cancel the request if this is its planned event; on any thread."""
        cut = self._plan.cut
        if cut is not None and cut.event == event and token >= cut.token * (event == "token"):
            self.cancel()

    def prepared(self, request: GenerationRequest) -> None:
        """Set the opened images; see `Generation.prepared`."""
        super().prepared(request)
        self.happens("prepared")

    def enter(self, phase: Phase, note: str = "") -> None:
        """Begin a phase; see `Task.enter`."""
        super().enter(phase, note)
        if phase == "loading":
            self.happens("loading")

    def _look(self, chunk: GenerationChunk) -> None:
        if chunk.phase in ("vision", "prefill", "decode"):
            self.happens(chunk.phase)
        if chunk.phase == "prefill" and chunk.cached_tokens < chunk.prompt_read:
            self.happens("chunk")
        if chunk.phase == "decode":
            self.happens("token", chunk.completion_tokens)


class Cutting(Session):
    """A separate session with the real backends."""

    def __init__(self) -> None:
        engine = Engine(at_end=platform.release_thread)
        backends: dict[str, Backend] = {"vision": VisionBackend(), "text": TextBackend()}
        clock = time.perf_counter
        pool = ModelPool(engine, backends, clock=clock)
        super().__init__(engine, pool, clock=clock)

    def begin(self, plan: Plan, history: tuple[Exchange, ...] = ()) -> Cuttable:
        """Start a planned request."""
        request = GenerationRequest(
            plan.prompt, sampling=plan.sampling, timeout=plan.timeout, history=history
        )
        asked = Cuttable(request, plan)
        taken = take_images((f"image {at}", each) for at, each in enumerate(plan.images))
        self.pool.running.begin(
            asked,
            lambda: self._prepare(asked, taken, thumbnails=False),
            failure=partial(preparing_error, request.model),
        )
        asked.happens("asked")
        return asked

    def settle(self) -> None:
        """Wait until the engine has dropped tasks that ended before their turn.

        Raises
        ------
        RuntimeError
            A task is still running.
        """
        for thread in threading.enumerate():
            if thread.name == "mlx-magic-prepare":
                thread.join(PATIENCE)
        until = time.monotonic() + PATIENCE
        while self.engine.call(lambda: len(self.engine._jobs)).result(PATIENCE) > 1:
            if time.monotonic() > until:
                raise RuntimeError("The engine goes on with something that nobody waits for.")

    def unload(self) -> None:
        """Unload the model if it is loaded."""
        if DEMO in self.pool:
            self.pool.unload(DEMO)

    def memory(self) -> tuple[int, int, int]:
        """Return the bytes with the caches, of the caches, and without them."""
        self.engine.call(gc.collect).result(PATIENCE)
        held, kept = self.pool.memory.active, self.pool.reuse.nbytes
        self.pool.forget()
        self.engine.call(gc.collect).result(PATIENCE)
        return held, kept, self.pool.memory.active

    def left(self) -> dict[str, int]:
        """Count what remains of ended requests."""
        return self.engine.call(self._left).result(PATIENCE)

    def _left(self) -> dict[str, int]:
        names = [thread.name for thread in threading.enumerate()]
        left = {
            "running": len(self.running),
            "in the engine": len(self.engine._jobs) - 1,
            "deadlines": len(self.pool.running.deadlines._tasks),
            "leases": sum(model.users for model in self.pool),
            "loads": self.pool._loads.nbytes,
            "threads": names.count("mlx-magic-prepare"),
        }
        for model in self.pool._registry.loaded:
            assert hasattr(model, "_answering")
            batch = model._answering.batch
            left["seats"] = len(batch)
            left["rows"] = 0 if batch._decode_batch is None else len(batch._decode_batch.slots)
            left["prompts"] = len(batch._waiting)
            left["prefill"] = int(batch._prefill_batch is not None)
        return left
