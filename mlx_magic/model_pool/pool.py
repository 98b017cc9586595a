"""The models in memory: each is loaded once, and shared by all code in the kernel."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from mlx_magic import argument_checks
from mlx_magic.backends.base import Backend, LoadedModel
from mlx_magic.backends.batching import admission
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.device import platform
from mlx_magic.backends.library_errors import preparing_error
from mlx_magic.engine.engine import Engine, StepSignal
from mlx_magic.engine.running_tasks import ChangeListeners, RunningTasks
from mlx_magic.engine.task import Clock, Task, outcome, wait
from mlx_magic.errors import EngineError, ModelError, RequestError, ShortTraceback
from mlx_magic.formatting import amount
from mlx_magic.model_pool.budget import ModelUsage, Refusal, Setting, check_ttl, choose_evictions
from mlx_magic.model_pool.eviction import Eviction, IdleTimer
from mlx_magic.model_pool.loader import Loader
from mlx_magic.model_pool.model_info import Lease, Load, ModelInfo
from mlx_magic.model_pool.registry import Registry
from mlx_magic.model_pool.shared_load import Loads
from mlx_magic.model_pool.unload import Unload, Unloaded
from mlx_magic.models import upstream_checks
from mlx_magic.models.catalog.alias_file import AliasTarget, is_alias, require_alias
from mlx_magic.models.catalog.aliases import Names, adapted_name
from mlx_magic.models.catalog.resolve import find
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.user_folders import absolute


class ModelPool:
    """Models in memory: iterable, and indexed by any of their names.

    Models are loaded and freed on the engine's thread. All methods may be called from any
    thread, unless they say otherwise.

    Parameters
    ----------
    engine : Engine
    backends : mapping of str to Backend
        One for each kind, ``"vision"`` and ``"text"``.
    clock : callable
        Seconds, monotonic.
    memory : callable
        Returns MLX's memory counters.

    names : Names, optional
        Aliases and model folders; empty if left out.

    Attributes
    ----------
    names : Names
    running : RunningTasks
        The session's tasks: loads and unloads of this pool, and the generations that use it.
    prefetch_if_loaded : callable
        See `Registry.prefetch_if_loaded`.
    """

    def __init__(
        self,
        engine: Engine,
        backends: Mapping[str, Backend],
        *,
        clock: Clock,
        memory: Callable[[], platform.Memory] = platform.memory,
        names: Names | None = None,
    ) -> None:
        self.names = names or Names()
        self.running = RunningTasks(clock)
        self._engine = engine
        self._clock = clock
        self._memory = memory
        self._listeners = ChangeListeners()
        self._registry = Registry(clock)
        self.prefetch_if_loaded = self._registry.prefetch_if_loaded
        self._loads = Loads()
        self._eviction = Eviction(
            engine, self._registry, self._loads, clock=clock, memory=memory, tell=self._tell
        )
        self._loader = Loader(
            backends,
            self._registry,
            self._loads,
            self._eviction,
            memory=memory,
            tell=self._tell,
        )
        self._timer = IdleTimer(self._eviction.expire, threaded=engine.threaded)
        engine.when_lost(self._forget)

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` when models, names, leases, pins or the budget change.

        Returns a callable that removes the callback. See `Session.watch`.
        """
        return self._listeners.add(callback)

    def load(
        self,
        model: str | os.PathLike[str],
        alias: str | None = None,
        *,
        trust_remote_code: bool = False,
        pin: bool = False,
        adapter: str | os.PathLike[str] | None = None,
    ) -> ModelInfo:
        """Load a model, and wait for it.

        Parameters
        ----------
        model : str or path
            Alias, folder or Hub repository id.
        alias : str, optional
            A short name for the model.
        trust_remote_code : bool
            Whether this load may run the checkpoint's own code.
        pin : bool
            Whether it stays until it is unloaded by hand.
        adapter : str or path, optional
            Folder of a LoRA adapter. The model with the adapter is a separate model.

        Raises
        ------
        ModelError
            When it cannot be loaded, or the load was cancelled.
        """
        with ShortTraceback():
            return self._load_by_name(
                model,
                alias=None if alias is None else argument_checks.name("alias", alias),
                trust_remote_code=argument_checks.flag("trust_remote_code", trust_remote_code),
                pin=argument_checks.flag("pin", pin),
                adapter=None if adapter is None else argument_checks.name("adapter", adapter),
            )

    def unload(self, name: str, *, force: bool = False) -> int:
        """Unload a model, and wait until its memory is free.

        The unload waits for the model's users, including requests that arrive in the meantime.
        Loading, pinning or leasing the model again withdraws the unload.

        Parameters
        ----------
        name : str
        force : bool
            Cancel the requests that use it. Requests that arrive afterwards reload the model.

        Returns
        -------
        int
            Bytes that were freed.

        Raises
        ------
        ModelNotFoundError
            When no such model is in memory.
        ModelInUseError
            When it is forced, and code holds a lease on the model.
        ModelError
            When the unload was cancelled or withdrawn.
        """
        with ShortTraceback():
            freed = outcome(lambda: self.submit_unload(name, force=force))
            if freed is None:
                message = f"The unload of {name} was cancelled: it is still there."
                raise ModelError(message, model=name)
            return freed

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[ModelInfo]:
        """Hold a model within a block: it is loaded if needed, and not unloaded meanwhile.

        Parameters
        ----------
        name : str
            Alias, folder or Hub repository id.

        Yields
        ------
        ModelInfo

        Raises
        ------
        ModelError
            When it cannot be loaded.
        """
        hold = Lease()
        try:
            # Not around the block: an error in it is the caller's.
            with ShortTraceback():
                argument_checks.name("model", name)
                info = self._registry.hold(name, hold)
                self._tell()
                info = info or self._load_by_name(name, hold=hold)
            yield info
        finally:
            self._eviction.release(hold)

    def pin(self, name: str) -> ModelInfo:
        """Keep a model in memory until it is unloaded by hand or unpinned.

        Raises
        ------
        ModelNotFoundError
            When no such model is in memory.
        """
        with ShortTraceback():
            info = self._registry.pin(argument_checks.name("model", name), pinned=True)
            self._tell()
            return info

    def unpin(self, name: str) -> ModelInfo:
        """Allow a model to be evicted. See `pin`."""
        with ShortTraceback():
            info = self._registry.pin(argument_checks.name("model", name), pinned=False)
            self._eviction.enforce_budget()
            self._tell()
            return info

    @property
    def budget(self) -> Setting:
        """Memory for all models: bytes, a share of the memory, ``"8 GB"``, or None.

        None is all that the device allows. When it is lowered, models over the budget are
        evicted immediately, the least recently used first; those in use when they are released.
        A warning names the models that cannot be evicted.
        """
        return self._eviction.setting

    @budget.setter
    def budget(self, setting: Setting) -> None:
        with ShortTraceback():
            _, refused = self.set_budget(setting)
        if refused is not None:
            warnings.warn(refused.over_budget_message, stacklevel=2)

    def set_budget(self, setting: Setting) -> tuple[list[ModelInfo], Refusal | None]:
        """Change the budget; return the evicted models, and a refusal if it is still exceeded.

        Raises
        ------
        RequestError
            When the setting is not valid.
        """
        with ShortTraceback():
            changed = self._eviction.set_budget(setting)
            self._tell()
            return changed

    @property
    def budget_bytes(self) -> int:
        """The budget in bytes; 0 is no limit."""
        return self._eviction.budget

    @property
    def taken(self) -> int:
        """Bytes that models take, including the estimates of loads in flight."""
        return self._loads.nbytes + self._registry.nbytes

    @property
    def idle_ttl(self) -> float | None:
        """Seconds after which an unused, unpinned model is evicted; None is never."""
        return self._eviction.idle_ttl

    @idle_ttl.setter
    def idle_ttl(self, seconds: float | None) -> None:
        with ShortTraceback():
            self._eviction.idle_ttl = check_ttl(seconds)
        self._timer.wake()

    @property
    def unloaded(self) -> tuple[Unloaded, ...]:
        """The last models that were unloaded, with the reason; the latest at the end."""
        return self._eviction.remembered

    @property
    def memory(self) -> platform.Memory:
        """MLX's memory: active, cached and allowed bytes."""
        return self._memory()

    @property
    def reuse(self) -> CacheStats:
        """Cache statistics, summed over all models."""
        return CacheStats.total(model.reuse for model in self._registry.loaded)

    @property
    def switched_off(self) -> tuple[str, ...]:
        """Mechanisms that are off with the installed libraries, a line each with the reason.

        Requests are then answered in the library's own way. Empty as long as all work.
        """
        return upstream_checks.switched_off()

    def forget(self) -> int:
        """Clear the models' image and prefix caches.

        Returns
        -------
        int
            Bytes that were freed.
        """
        with ShortTraceback():
            return wait(self._engine.call(self._registry.forget, soon=True))

    @property
    def models(self) -> list[ModelInfo]:
        """The models in memory, oldest first."""
        return self._registry.models

    def __iter__(self) -> Iterator[ModelInfo]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._registry.find(name) is not None

    def __getitem__(self, name: str) -> ModelInfo:
        with ShortTraceback():
            return self._registry.info(self._registry.named(argument_checks.name("model", name)))

    def __repr__(self) -> str:
        names = ", ".join(
            f"{m.name} ({amount(m.nbytes)}{', pinned' if m.pinned else ''})" for m in self.models
        )
        return f"<ModelPool: {names or 'empty'}>"

    def submit_load(
        self,
        name: str,
        *,
        alias: str | None = None,
        trust_remote_code: bool = False,
        adapter: str | None = None,
        save: bool = False,
        pin: bool = False,
        hold: Lease | None = None,
    ) -> Load:
        """Begin to load a model; returns at once. See `load`.

        Parameters
        ----------
        name : str
            Alias, folder or repository id.
        alias : str, optional
            A short name for the model.
        trust_remote_code : bool
            Whether this load may run the checkpoint's own code.
        adapter : str, optional
            Folder of a LoRA adapter. The model with the adapter is a separate model, called
            ``"model+adapter"`` if no alias is given.
        save : bool
            Whether the alias is also saved in the user's alias file.
        pin : bool
            Whether the model stays until it is unloaded by hand.
        hold : Lease, optional
            A lease that holds the model as soon as it is loaded.

        Raises
        ------
        RequestError
            The alias cannot be one, or cannot be saved.
        """
        if adapter is not None:
            adapter = str(absolute(adapter))
            if alias is None:
                alias = adapted_name(name, adapter)
                if not is_alias(alias):
                    raise RequestError(
                        f"The adapter {argument_checks.short_repr(adapter)} makes a name that "
                        "cannot be an alias: choose one (alias, or --as).",
                        option="adapter",
                    )
        if alias is not None:
            require_alias(alias)
        if save and alias is None:
            raise RequestError("--save needs an alias: add --as ALIAS.", option="save")
        if save:
            self.names.require_file()
        load = Load(alias or name, clock=self._clock, pin=pin, hold=hold)

        def prepare() -> None:
            found = self.find(name, load, trusted=trust_remote_code, adapter=adapter)
            tuned = None if found.adapter is None else str(found.adapter.path)

            def named(alias: str) -> None:
                if save:
                    self.names.save(alias, name, tuned)
                self.give_alias(alias, AliasTarget(str(found.path), tuned))

            if alias is not None:
                # The alias is set only if the load succeeds.
                load.before_success = partial(named, alias)
            self.queue_load(
                load, replace(found, name=alias or name), trust_remote_code=trust_remote_code
            )

        self.running.begin(load, prepare, failure=partial(preparing_error, name))
        return load

    def find(
        self, name: str, task: Task[Any], *, trusted: bool = False, adapter: str | None = None
    ) -> Checkpoint:
        """Find a model by its name; blocks while it is downloaded. See `resolve.find`."""
        return find(
            name,
            task,
            names=self.names,
            loaded=self._loaded_from,
            trusted=trusted,
            adapter=adapter,
        )

    def give_alias(self, alias: str, target: AliasTarget) -> None:
        """Set an alias for this session."""
        self.names.give(alias, target)
        self._listeners.notify()

    def queue_load(
        self, load: Load, checkpoint: Checkpoint, *, trust_remote_code: bool = False
    ) -> None:
        """Queue a load; a model that is in memory is not loaded again. See `Loader.load`."""
        self._engine.submit(self._loader.load(load, checkpoint, trust_remote_code), load.fail)

    def leased(
        self, checkpoint: Checkpoint, task: Task[Any]
    ) -> Generator[StepSignal | None, None, contextlib.AbstractContextManager[LoadedModel]]:
        """Load if needed, then lease; on the inference thread. See `Loader.leased`."""
        return self._loader.leased(checkpoint, task)

    def submit_unload(self, name: str, *, force: bool = False) -> Unload:
        """Begin to unload a model; returns at once. See `unload`.

        Returns
        -------
        Unload
            A task that waits for the model's users, and can be cancelled until then.
        """
        name, force = argument_checks.name("model", name), argument_checks.flag("force", force)
        unload = self._eviction.unload(name, force=force)
        if not unload.begun:
            self.running.add(unload)
        return unload

    def close(self) -> None:
        """End the idle timer's thread."""
        self._timer.close()

    def _load_by_name(self, model: str | os.PathLike[str], **options: Any) -> ModelInfo:
        """Load a model, and wait for it. See `load`."""
        name = argument_checks.name("model", model)
        info: ModelInfo | None = outcome(lambda: self.submit_load(name, **options))
        if info is None:
            name = options.get("alias") or name
            raise ModelError(f"The load of {name} was cancelled.", model=name)
        return info

    def _loaded_from(self, folder: str | os.PathLike[str]) -> Checkpoint | None:
        """Return the checkpoint of the model that was loaded from this folder, or None."""
        entry = None
        # A name that the file system cannot encode is not a model folder.
        with contextlib.suppress(OSError, ValueError):
            entry = self._registry.of_folder(os.path.realpath(folder))
        return entry.checkpoint if entry else None

    def _tell(self) -> None:
        if self.idle_ttl is not None:
            self._timer.wake()
        self._listeners.notify()

    def _forget(self) -> None:
        """Drop every model: the arrays belong to a thread that has died."""
        waited = self._registry.clear()
        self._loads.forget()
        admission.SHARED.forget()
        for unload in waited:
            unload.fail(EngineError("The inference thread died, and its models are gone."))
        self._tell()


def fits(pool: ModelPool, needed_bytes: int) -> bool | None:
    """Return whether a load would fit into the budget; None if unknown.

    As in a load, idle unpinned models count as free, since they would be evicted.

    Parameters
    ----------
    pool : ModelPool
    needed_bytes : int
        Memory of the model; 0 is unknown.
    """
    budget = pool.budget_bytes
    if not budget or not needed_bytes:
        return None
    models = pool.models
    loading = max(pool.taken - sum(model.nbytes for model in models), 0)
    usages = [ModelUsage(m.name, m.name, m.nbytes, -m.idle, m.users, m.pinned) for m in models]
    return not isinstance(choose_evictions(needed_bytes, budget, usages, loading=loading), Refusal)
