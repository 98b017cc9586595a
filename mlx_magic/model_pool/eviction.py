"""Unloading models: by hand, to make room, after the idle time, or over the budget."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from mlx_magic.backends.device import platform
from mlx_magic.backends.device.platform import Memory
from mlx_magic.engine.engine import Engine
from mlx_magic.engine.task import Clock
from mlx_magic.errors import EngineError
from mlx_magic.formatting import amount
from mlx_magic.model_pool.budget import (
    ModelUsage,
    Refusal,
    Setting,
    budget_bytes,
    check_setting,
    choose_evictions,
    evictions_for_budget,
)
from mlx_magic.model_pool.model_info import ModelInfo
from mlx_magic.model_pool.registry import PoolEntry, Registry
from mlx_magic.model_pool.shared_load import Loading, Loads
from mlx_magic.model_pool.unload import Unload, Unloaded, UnloadReason

REMEMBERED = 8
"""Maximum number of unloaded models that are remembered."""


class Eviction:
    """Unloads models. They are chosen on any thread, and freed on the engine's thread.

    Parameters
    ----------
    engine : Engine
    registry : Registry
    loads : Loads
        The loads in flight: their estimates count as used memory.
    clock : callable
        Seconds, monotonic.
    memory : callable
        Returns MLX's memory counters.
    tell : callable
        Called, under no lock, when something has changed.

    Attributes
    ----------
    idle_ttl : float or None
        Seconds that a model may stay unused.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        loads: Loads,
        *,
        clock: Clock,
        memory: Callable[[], Memory],
        tell: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._loads = loads
        self._clock = clock
        self._memory = memory
        self._tell = tell
        self._setting: Setting = None
        self.idle_ttl: float | None = None
        self._remembered: deque[Unloaded] = deque(maxlen=REMEMBERED)

    @property
    def setting(self) -> Setting:
        """The budget as it was given."""
        return self._setting

    @property
    def budget(self) -> int:
        """Bytes that models may take together; 0 is no limit."""
        return budget_bytes(self._setting, self._memory().limit)

    @property
    def remembered(self) -> tuple[Unloaded, ...]:
        """The last unloaded models, the latest at the end."""
        return tuple(self._remembered)

    def set_budget(self, setting: Setting) -> tuple[list[ModelInfo], Refusal | None]:
        """Change the budget, and evict models that are over it.

        Returns
        -------
        list of ModelInfo, and Refusal or None
            The evicted models, and what still exceeds the budget.

        Raises
        ------
        RequestError
            When the setting cannot be a budget.
        """
        self._setting = check_setting(setting)
        return self.enforce_budget()

    def unload(self, name: str, *, force: bool = False) -> Unload:
        """Begin to unload a model, after its users have ended. See `ModelPool.unload`."""
        unload = Unload(name, clock=self._clock, force=force)
        entry, requests = self._registry.unload(unload)
        for task in requests:
            if not task.done:
                unload.cancelled += 1
                task.cancel()
        if entry is not None:
            self._free(entry, "asked")
        self._tell()
        return unload

    def release(self, holder: object) -> None:
        """Remove a holder, and begin the unloads that have waited for it."""
        for entry in self._registry.release(holder):
            self._free(entry, "asked")
        # The budget may have been lowered while the model was in use.
        self.enforce_budget()
        self._tell()

    def make_room(self, needed: int, loading: Loading, name: str) -> None:
        """Evict the least recently used models until a load fits; on the engine's thread.

        The estimate of the load then counts as used memory. The memory of evicted models is
        free when `Registry.leaving` is false.

        Parameters
        ----------
        needed : int
            Bytes.
        loading : Loading
        name : str
            The model of the load.

        Raises
        ------
        MemoryBudgetError
            When it cannot fit. Then no model is evicted.
        """

        def choose(models: list[ModelUsage]) -> Iterable[ModelUsage]:
            others = self._loads.nbytes - loading.nbytes
            planned = choose_evictions(needed, self.budget, models, loading=others)
            if isinstance(planned, Refusal):
                raise planned.error(name)
            loading.nbytes = needed
            return planned

        for entry in self._registry.leave(choose):
            loading.note(f"Unloaded {entry.names[0]} ({amount(entry.nbytes)}) to make room.")
            self._free(entry, "room", wanted_by=name)
            self._tell()

    def expire(self) -> float | None:
        """Evict the models that were idle for longer than `idle_ttl`.

        Returns
        -------
        float or None
            Seconds until the next model is due; None if there is none.
        """
        ttl, now = self.idle_ttl, self._clock()
        if ttl is None:
            return None
        due: list[float] = []

        def choose(models: list[ModelUsage]) -> Iterable[ModelUsage]:
            idle = [model for model in models if model.can_leave]
            due.extend(rest for m in idle if (rest := m.last_used + ttl - now) > 0)
            return [model for model in idle if model.last_used + ttl <= now]

        for entry in self._registry.leave(choose):
            self._free(entry, "idle")
            self._tell()
        return min(due, default=None)

    def enforce_budget(self) -> tuple[list[ModelInfo], Refusal | None]:
        """Evict models until the budget is kept, as far as possible. See `set_budget`."""
        refusals: list[Refusal | None] = []

        def choose(models: list[ModelUsage]) -> Iterable[ModelUsage]:
            leaving, refused = evictions_for_budget(self.budget, models, loading=self._loads.nbytes)
            refusals.append(refused)
            return leaving

        entries = self._registry.leave(choose)
        evicted = [self._registry.info(entry) for entry in entries]
        for entry in entries:
            self._free(entry, "budget")
        return evicted, refusals[0]

    def _free(self, entry: PoolEntry, why: UnloadReason, wanted_by: str = "") -> None:
        """Free the memory of a removed model on the engine's thread, after its current slice."""

        def free() -> int:
            before = self._memory().active
            entry.model.close()
            platform.keep_buffers(self._registry.nbytes)
            # Measured, since other references may keep arrays of the model alive.
            return max(before - self._memory().active, 0) if before else entry.nbytes

        def freed(future: Future[int]) -> None:
            self._registry.memory_freed(entry)
            error = future.exception()
            for unload in entry.unloads:
                if error is None:
                    unload.succeed(future.result())
                else:
                    unload.fail(error)
            self._tell()

        self._remembered.append(Unloaded(entry.names[0], entry.nbytes, why, wanted_by))
        try:
            # The model has no holder, so that it need not wait for other jobs.
            future = self._engine.call(free, soon=True)
        except EngineError as error:
            # The engine is closed: the memory is freed with the process.
            future = Future()
            future.set_exception(error)
        future.add_done_callback(freed)


class IdleTimer:
    """Calls `evict_due` at due times. The thread starts with the first `wake`.

    Parameters
    ----------
    evict_due : callable
        Evicts what is due, and returns the seconds until the next due time; None is never.
    threaded : bool
        False starts no thread, for tests.
    """

    def __init__(self, evict_due: Callable[[], float | None], *, threaded: bool = True) -> None:
        self._evict_due = evict_due
        self._threaded = threaded
        self._changed = threading.Condition()
        self._woken = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Call `evict_due` now, and again at the next due time."""
        with self._changed:
            self._woken = True
            if self._threaded and self._thread is None and not self._closed:
                # A daemon thread does not keep the process alive.
                self._thread = threading.Thread(
                    target=self._run, name="mlx-magic-idle", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                self._woken = False
            pause = self._evict_due()
            if pause is not None:  # longer waits raise OverflowError
                pause = min(pause, threading.TIMEOUT_MAX)
            with self._changed:
                self._changed.wait_for(lambda: self._woken or self._closed, pause)
