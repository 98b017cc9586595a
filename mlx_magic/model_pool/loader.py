"""Finds a model in memory, or loads it after evicting others. Runs on the inference thread."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any

from mlx_magic.backends.base import Backend, LoadedModel
from mlx_magic.backends.device import platform
from mlx_magic.backends.device.platform import Memory
from mlx_magic.backends.library_errors import load_error, no_panics
from mlx_magic.backends.loading import library_environment, remote_code_guard
from mlx_magic.cancellation import Cancelled
from mlx_magic.engine.engine import WAIT, Steps, StepSignal
from mlx_magic.engine.task import Task
from mlx_magic.errors import MlxMagicError
from mlx_magic.formatting import without_frames
from mlx_magic.model_pool.eviction import Eviction
from mlx_magic.model_pool.model_info import Load
from mlx_magic.model_pool.registry import ModelKey, PoolEntry, Registry
from mlx_magic.model_pool.shared_load import Loading, Loads
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

ROUNDING = 0.01
"""Share by which measured memory may exceed the weights and still be counted as the weights."""


class Loader:
    """Loads models; tasks that wait for the same model share one load.

    Parameters
    ----------
    backends : mapping of str to Backend
        One for each kind.
    registry : Registry
    loads : Loads
    eviction : Eviction
    memory : callable
        Returns MLX's memory counters.
    tell : callable
        Called, under no lock, when something has changed.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        registry: Registry,
        loads: Loads,
        eviction: Eviction,
        *,
        memory: Callable[[], Memory],
        tell: Callable[[], None],
    ) -> None:
        self._backends = backends
        self._registry = registry
        self._loads = loads
        self._eviction = eviction
        self._memory = memory
        self._tell = tell
        # Measured memory of earlier loads, which replaces the estimate.
        self._measured: dict[ModelKey, int] = {}

    def load(self, load: Load, checkpoint: Checkpoint, trust_remote_code: bool) -> Steps:
        """Run a load.

        Parameters
        ----------
        load : Load
            Gets the progress and the outcome.
        checkpoint : Checkpoint
        trust_remote_code : bool
            Whether this load may run the checkpoint's own code.
        """
        try:
            load.enter("loading")
            entry = yield from self._find_or_load(
                checkpoint,
                load,
                trust_remote_code=trust_remote_code,
                holder=load.hold,
                pin=load.pin,
            )
            load.succeed(self._registry.info(entry))
        except Cancelled:
            load.stopped()

    def leased(
        self, checkpoint: Checkpoint, task: Task[Any]
    ) -> Generator[StepSignal | None, None, contextlib.AbstractContextManager[LoadedModel]]:
        """Load the model if needed, then lease it. A leased model is not unloaded.

        Parameters
        ----------
        checkpoint : Checkpoint
        task : Task
            Gets the progress, holds the model, and may be cancelled.

        Returns
        -------
        context manager
            Yields the `LoadedModel`, and ends the lease.
        """
        entry = yield from self._find_or_load(checkpoint, task, holder=task)
        return self._lease(entry, task)

    @contextlib.contextmanager
    def _lease(self, entry: PoolEntry, task: Task[Any]) -> Iterator[LoadedModel]:
        """Yield the model, then end the lease that `_find_or_load` has begun."""
        try:
            self._tell()
            yield entry.model
        finally:
            self._eviction.release(task)

    def _find_or_load(
        self,
        checkpoint: Checkpoint,
        task: Task[Any],
        *,
        trust_remote_code: bool | None = None,
        holder: object = None,
        pin: bool = False,
    ) -> Generator[StepSignal | None, None, PoolEntry]:
        """Find the model, or load it. Permission to run code is part of its key.

        A `holder` holds the model when it is returned, so that it cannot be unloaded in between.
        Requests that arrive during a forced unload wait, then reload the model.
        """
        name = checkpoint.name
        if trust_remote_code is None:
            keys = ModelKey.any_of(checkpoint)
        else:
            keys = [ModelKey.of(checkpoint, trusted=trust_remote_code)]

        def take_entry() -> PoolEntry | None:
            entry, changed = self._registry.take(keys, name, holder=holder, pin=pin)
            if changed:
                self._tell()
            return entry

        while (entry := take_entry()) is None:
            if self._registry.is_closing(keys):
                task.token.checkpoint()
                yield WAIT
                continue
            key = next((key for key in keys if key in self._loads), keys[-1])
            checkpoint.require_trust(key.trusted)
            try:
                begin = partial(self._load, checkpoint, key)
                with self._loads.joined(key, task, name, begin) as loading:
                    yield from loading.follow(task)
                    # The load holds the model until all waiting tasks have taken it.
                    if (entry := take_entry()) is not None:
                        return entry
            finally:
                self._tell()
        return entry

    def _load(self, checkpoint: Checkpoint, key: ModelKey, loading: Loading) -> Steps:
        """Load a model for all waiting tasks."""
        backend, name = self._backends[checkpoint.kind], checkpoint.name
        try:
            yield from self._wait_for_freed_memory(loading)
            # A load that was cancelled must not evict anything.
            loading.token.checkpoint()
            needed = self._measured.get(key) or backend.estimate(checkpoint)
            self._eviction.make_room(needed, loading, name)
            # The evicted models are freed before the load begins.
            yield from self._wait_for_freed_memory(loading)
            self._drop_caches_if_needed(needed)
            steps = backend.load(
                checkpoint,
                trust_remote_code=key.trusted,
                cancel=loading.token,
                progress=loading.advance,
            )
            with no_panics():
                guarded = remote_code_guard.guarded(steps, checkpoint, allowed=key.trusted)
                model, nbytes = yield from self._run_measured(library_environment.sliced(guarded))
        except (Cancelled, MlxMagicError):
            raise
        except Exception as error:
            raise load_error(backend.library, checkpoint, error) from without_frames(error)
        self._measured[key] = nbytes
        try:
            if not loading.names:
                raise Cancelled
            if nbytes > needed:
                self._eviction.make_room(nbytes, loading, name)
            # After the measurement: memory that a request leaves behind is not the model's.
            warming = model.warm_up(cancel=loading.token, progress=loading.advance)
            with no_panics():
                warmed = remote_code_guard.guarded(warming, checkpoint, allowed=key.trusted)
                yield from library_environment.sliced(warmed)
            if not loading.names:
                raise Cancelled
        except BaseException as error:
            model.close()
            if isinstance(error, Exception) and not isinstance(error, Cancelled | MlxMagicError):
                raise load_error(backend.library, checkpoint, error) from without_frames(error)
            raise
        entry = PoolEntry(checkpoint, model, key, nbytes, holders=[loading])
        loading.on_last_left = partial(self._eviction.release, loading)
        self._registry.add(entry, loading.names[0], partial(setattr, loading, "nbytes", 0))
        platform.keep_buffers(self._registry.nbytes)

    def _run_measured(
        self, steps: Generator[StepSignal | None, None, LoadedModel]
    ) -> Generator[StepSignal | None, None, tuple[LoadedModel, int]]:
        """Run a load's slices; return the model and its memory in bytes.

        The memory is the sum of the differences of active memory over each slice, so that other
        jobs do not count. It is at least the size of the model's arrays, since memory of others
        may be freed during a slice.
        """
        grown = 0
        try:
            while True:
                before = self._memory().active
                signal = next(steps)
                grown += self._memory().active - before
                yield signal
        except StopIteration as end:
            model: LoadedModel = end.value
            grown += self._memory().active - before
            # A percent more is rounding by the allocator, or other garbage.
            own = model.nbytes
            return model, grown if grown > own * (1 + ROUNDING) else own
        finally:
            steps.close()

    def _wait_for_freed_memory(self, loading: Loading) -> Steps:
        """Wait until the memory of evicted models is free."""
        while self._registry.leaving:
            loading.token.checkpoint()
            yield WAIT

    def _drop_caches_if_needed(self, needed: int) -> None:
        """Clear the models' caches if a load would not fit beside them."""
        memory = self._memory()
        if memory.limit and memory.active + needed > memory.limit:
            self._registry.forget()
            # Reference cycles through tracebacks of failed requests may hold arrays.
            gc.collect()
