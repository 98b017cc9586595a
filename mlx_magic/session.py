"""The session: the models and the running requests that cells, panels and code share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mlx_magic.backends.device import platform
from mlx_magic.backends.library_errors import generation_error, no_panics, preparing_error
from mlx_magic.cancellation import Cancelled
from mlx_magic.engine.engine import Engine, Steps
from mlx_magic.engine.generation import Generation, OnProgress, Sink
from mlx_magic.engine.request import DEMO, Exchange, GenerationRequest
from mlx_magic.engine.running_tasks import ChangeListeners
from mlx_magic.engine.stop_sequences import Stopped
from mlx_magic.engine.task import Clock, Task
from mlx_magic.errors import (
    MlxMagicError,
)
from mlx_magic.formatting import without_frames
from mlx_magic.images import opening
from mlx_magic.images.opening import TakenImages
from mlx_magic.model_pool.model_info import no_images
from mlx_magic.model_pool.pool import ModelPool
from mlx_magic.models.catalog import model_summary
from mlx_magic.models.catalog.local_models import ModelOnDisk, models_on_disk, names_on_disk
from mlx_magic.models.catalog.model_summary import ModelSummary
from mlx_magic.models.catalog.resolve import describe_model
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

THUMBNAIL_DELAY = 0.08
"""Seconds after the start of a request before its thumbnails are made."""

NamedImage = tuple[str | None, Any]


@dataclass(frozen=True, slots=True)
class TakenExample:
    """An earlier answer to the same question, whose images are not open yet.

    Attributes
    ----------
    images : TakenImages
    answer : str
    """

    images: TakenImages
    answer: str


class Session:
    """The engine, the model pool and the model names of one kernel.

    Parameters
    ----------
    engine : Engine
    pool : ModelPool
    clock : callable
        Seconds, monotonic.

    Attributes
    ----------
    engine : Engine
    pool : ModelPool
    names : Names
        Aliases and model folders: the pool's.
    """

    def __init__(
        self,
        engine: Engine,
        pool: ModelPool,
        *,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.engine = engine
        self.pool = pool
        self.names = pool.names
        self._default_model: str | None = None
        self._clock = clock
        self._listeners = ChangeListeners()
        self._running = pool.running
        self._running.watch(self._listeners.notify)
        pool.watch(self._listeners.notify)

    @property
    def aliases(self) -> Mapping[str, str]:
        """The current aliases, to folder or repository id."""
        return self.names.aliases

    @property
    def default_model(self) -> str | None:
        """The model of requests that name none; None is the bundled demo model."""
        return self._default_model

    @default_model.setter
    def default_model(self, name: str | None) -> None:
        changed = name != self._default_model
        self._default_model = name
        if changed:
            self._listeners.notify()

    @property
    def running(self) -> list[Task[Any]]:
        """Generations, loads and unloads that have not ended."""
        return self._running.tasks

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` when something begins, ends or changes. Progress is not reported.

        Reported are generations, loads and unloads, the models in the pool with their names,
        leases and pins, the budget, the aliases and the default model. A task that has ended
        has its outcome by then, and is no longer in `running`.

        Parameters
        ----------
        callback : callable
            Called on any thread, including the inference thread: must be quick.
            One that raises is logged, and not called again.

        Returns
        -------
        callable
            Removes the callback.
        """
        return self._listeners.add(callback)

    @property
    def model_names(self) -> list[str]:
        """Names of models that need no download; reads the disk."""
        loaded = [name for m in self.pool for name in m.names]
        on_disk = names_on_disk(self.names.folders)
        return list(dict.fromkeys([DEMO, *self.aliases, *loaded, *on_disk]))

    def start(
        self,
        request: GenerationRequest,
        *,
        images: Sequence[NamedImage] | TakenImages = (),
        examples: Sequence[TakenExample] = (),
        max_pixels: int | None = None,
        normalize: bool = True,
        sink: Sink | None = None,
        on_progress: OnProgress | None = None,
        thumbnails: bool = False,
    ) -> Generation:
        """Begin to answer a request; returns once its images are taken.

        Parameters
        ----------
        request : GenerationRequest
            Its `images` come before those of the parameter `images`.
        images : sequence of (name, value), or TakenImages
            Images to open: anything that `images.open_images` accepts. They are taken on this
            thread, as they are now.
        examples : sequence of TakenExample
            Turns before those of `request.history`, with the same question.
        max_pixels : int, optional
            Larger images are scaled down to this many pixels.
        normalize : bool
            See `images.open_images`. Both are those of `TakenImages`, if such are given.
        sink : callable, optional
            Called with each `GenerationChunk`, on the inference thread.
        on_progress : callable, optional
            See `Generation.observe`.
        thumbnails : bool
            Whether thumbnails are made during the request, for a view that shows them. On two
            cores they take 3 % of a small model's speed. Otherwise they are made when the
            result is shown.

        Returns
        -------
        Generation
            Its future gets the `VisionResult` or an `MlxMagicError`.

        Raises
        ------
        ImageError
            If a value is not an image, or a file cannot be read. Errors of decoding and fetching
            are those of the future.
        """
        taken = images
        if not isinstance(taken, TakenImages):
            taken = opening.take_images(taken, max_pixels=max_pixels, normalize=normalize)
            taken.read()
        generation = Generation(request, clock=self._clock, sink=sink)
        if on_progress is not None:
            generation.observe(on_progress)
        self._running.begin(
            generation,
            lambda: self._prepare(generation, taken, examples, thumbnails=thumbnails),
            failure=partial(preparing_error, request.model),
        )
        return generation

    def check(self, name: str) -> str:
        """Check whether a model can be used, without loading it.

        Returns
        -------
        str
            Kind and architecture, for display.

        Raises
        ------
        ModelError
            When there is no such model, or its checkpoint cannot be used.
        """
        return describe_model(name, self.names)

    def on_disk(self) -> list[ModelOnDisk]:
        """List the models on this machine's disk; see `models_on_disk`.

        Reads files: do not call it on an event loop.
        """
        return models_on_disk(
            self.names.plain_aliases,
            float32=platform.wants_float32,
            folders=self.names.folders,
        )

    def summary(self, name: str) -> ModelSummary:
        """Describe a model; see `model_summary.read`.

        May query the Hub: do not call it on an event loop.
        """
        return model_summary.read(name, self.names, float32=platform.wants_float32)

    def cancel(self) -> int:
        """Cancel everything that is running or queued; return the number of tasks."""
        return self._running.cancel()

    def device(self) -> list[tuple[str, str]]:
        """Describe the device that MLX uses: pairs of a label and its value, for display."""
        return platform.facts()

    def close(self) -> None:
        """Cancel all tasks and end the threads."""
        self._running.close()
        self.pool.close()
        self.engine.close()

    def _prepare(
        self,
        generation: Generation,
        taken: TakenImages,
        examples: Sequence[TakenExample] = (),
        *,
        thumbnails: bool,
    ) -> None:
        request = generation.request
        found = self.pool.find(request.model, generation)
        before = any(each.images for each in request.history)
        before = before or any(each.images for each in examples)
        if found.kind == "text" and (taken or request.images or before):
            raise no_images(request.model, self.pool, before=before)
        opened = [*request.images, *taken.open(generation.token)]
        shown = [
            Exchange(request.prompt, each.answer, tuple(each.images.open(generation.token)))
            for each in examples
        ]
        history = (*shown, *request.history)
        generation.prepared(replace(request, images=tuple(opened), history=history))
        earlier = [image for exchange in history for image in exchange.images]
        # Decoded here and not on the inference thread, and only once.
        pixels = [image.pixels for image in (*earlier, *opened)]
        # Only the steps hold the prefetched inputs and the pixels, so that these are freed with
        # them.
        steps = self._steps(
            generation,
            found,
            (self.pool.prefetch_if_loaded(found, generation.request, generation.token), pixels),
        )
        generation.on_cancel = partial(self.engine.prioritize, steps)
        urgent = None if request.background else generation.is_before_first_token
        self.engine.submit(steps, generation.fail, urgent=urgent)
        # Made later: at the start they would take a core from the model (4 % of a small
        # model's time to the first token, measured).
        if thumbnails:
            generation.token.wait(THUMBNAIL_DELAY)
            generation.make_thumbnails()

    def _steps(self, generation: Generation, found: Checkpoint, ready: object = None) -> Steps:
        """Load the model if needed, then answer, in steps on the inference thread.

        `ready` is not used: the generator keeps prefetched inputs and pixels alive.
        """
        request = generation.request.with_instructions
        try:
            generation.enter("loading")
            lease = yield from self.pool.leased(found, generation)
            with lease as model, no_panics():
                reason = yield from model.generate(
                    request, cancel=generation.token, report=generation.report
                )
            generation.finish(reason)
        except Cancelled:
            generation.stopped()
        except Stopped:
            generation.finish("stop")
        except MlxMagicError:
            raise
        except Exception as error:
            failure = generation_error(request.model, error)
            raise failure from without_frames(error)
        finally:
            # From now on an image is its file, which is decoded when it is used again.
            for image in request.images:
                image.stored.release()
