"""The registry of models in memory and of their holders, under one lock."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mlx_magic.backends.base import LoadedModel
from mlx_magic.cancellation import Cancelled
from mlx_magic.engine.task import Clock, Task
from mlx_magic.errors import ModelInUseError, ModelNotFoundError
from mlx_magic.model_pool.budget import ModelUsage
from mlx_magic.model_pool.model_info import Lease, ModelInfo
from mlx_magic.model_pool.unload import Unload
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

if TYPE_CHECKING:
    from mlx_magic.cancellation import CancelToken
    from mlx_magic.engine.request import GenerationRequest


class ModelKey(NamedTuple):
    """The identity of a model in memory.

    Attributes
    ----------
    folder : str
    adapter : str or None
        Folder of the LoRA adapter that was loaded with it.
    trusted : bool
        Whether the load was allowed to run the checkpoint's code.
    """

    folder: str
    adapter: str | None
    trusted: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, trusted: bool) -> ModelKey:
        """Return the key of a checkpoint that is loaded with this permission."""
        adapter = None if checkpoint.adapter is None else str(checkpoint.adapter.path)
        return cls(str(checkpoint.path.resolve()), adapter, trusted)

    @classmethod
    def any_of(cls, checkpoint: Checkpoint) -> list[ModelKey]:
        """Return the keys of a checkpoint for both permissions, the trusted one first."""
        return [cls.of(checkpoint, trusted=trusted) for trusted in (True, False)]


@dataclass(slots=True, eq=False)
class PoolEntry:
    """A loaded model with its names and holders; changed under the registry's lock.

    Attributes
    ----------
    checkpoint : Checkpoint
    model : LoadedModel
    key : ModelKey
    nbytes : int
        Bytes in memory.
    names : list of str
        All names; the first is displayed.
    holders : list
        The requests, leases and loads that hold the model.
    unloads : list of Unload
        Unloads that wait until the model has no holder.
    pinned : bool
    last_used : float
        Seconds of the pool's clock.
    """

    checkpoint: Checkpoint
    model: LoadedModel
    key: ModelKey
    nbytes: int
    names: list[str] = field(default_factory=list)
    holders: list[object] = field(default_factory=list)
    unloads: list[Unload] = field(default_factory=list)
    pinned: bool = False
    last_used: float = 0.0

    @property
    def plain_name(self) -> str:
        """The name of the model when other models have taken all of its names."""
        path, adapter = self.checkpoint.path, self.checkpoint.adapter
        return str(path) if adapter is None else f"{path}+{adapter.path.name}"

    @property
    def closing(self) -> bool:
        """Whether a forced unload waits for the cancelled users; no new holder is allowed then."""
        return any(unload.force and not unload.done for unload in self.unloads)

    def info(self, now: float) -> ModelInfo:
        """Return the public description."""
        checkpoint, together = self.checkpoint, self.model.together
        return ModelInfo(
            name=self.names[0],
            names=tuple(self.names),
            kind=checkpoint.kind,
            model_type=checkpoint.model_type,
            quantization=checkpoint.quantization,
            nbytes=self.nbytes,
            users=len(self.holders),
            path=str(checkpoint.path),
            trusted=self.key.trusted,
            adapter=self.key.adapter,
            pinned=self.pinned,
            idle=0.0 if self.holders else max(now - self.last_used, 0.0),
            together=together.together,
            why_apart=together.why,
        )

    def usage(self) -> ModelUsage:
        """Return the data that the budget computation needs."""
        return ModelUsage(
            self.key, self.names[0], self.nbytes, self.last_used, len(self.holders), self.pinned
        )


class Registry:
    """The models in memory by key and names; safe from any thread.

    `leaving` is true while the memory of removed models is not free yet.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._by_key: dict[ModelKey, PoolEntry] = {}
        self._leaving: list[PoolEntry] = []

    @property
    def models(self) -> list[ModelInfo]:
        """The public descriptions, oldest first."""
        with self._lock:
            now = self._clock()
            return [entry.info(now) for entry in self._by_key.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of all models together."""
        with self._lock:
            return sum(entry.nbytes for entry in self._by_key.values())

    @property
    def loaded(self) -> list[LoadedModel]:
        """The loaded models; to be used on the inference thread only."""
        with self._lock:
            return [entry.model for entry in self._by_key.values()]

    def forget(self) -> int:
        """Clear the models' caches, on the inference thread; return the freed bytes."""
        return sum(model.forget() for model in self.loaded)

    @property
    def leaving(self) -> bool:
        """Whether the memory of removed models is not free yet."""
        with self._lock:
            return bool(self._leaving)

    def info(self, entry: PoolEntry) -> ModelInfo:
        """Return the public description of a model."""
        with self._lock:
            return entry.info(self._clock())

    def find(self, name: str) -> PoolEntry | None:
        """Return the model of this name, or None."""
        with self._lock:
            return next((e for e in self._by_key.values() if name in e.names), None)

    def named(self, name: str) -> PoolEntry:
        """Return the model of this name.

        Raises
        ------
        ModelNotFoundError
            When no such model is in memory.
        """
        with self._lock:
            entry = self.find(name)
            if entry is None:
                loaded = ", ".join(m.name for m in self.models) or "none"
                raise ModelNotFoundError(f"{name} is not loaded; loaded: {loaded}.", model=name)
            return entry

    def of_folder(self, folder: str) -> PoolEntry | None:
        """Return the model that was loaded from this folder without an adapter, or None."""
        plain = [ModelKey(folder, None, trusted) for trusted in (True, False)]
        with self._lock:
            return self._first(plain)

    def prefetch_if_loaded(
        self, checkpoint: Checkpoint, request: GenerationRequest, cancel: CancelToken
    ) -> object:
        """Prefetch inputs of a request, if its model is in memory; callable from any thread.

        Returns
        -------
        object
            The prefetched inputs, to be held until the request has ended. See
            `LoadedModel.prefetch`.

        Raises
        ------
        Cancelled
        """
        keys = ModelKey.any_of(checkpoint)
        with self._lock:
            entry = self._first(keys)
            ahead = None if entry is None else entry.model.prefetch
            # No reference to the model may stay: it would be freed on this thread.
            del entry
        return None if ahead is None else ahead(request, cancel)

    def add(self, entry: PoolEntry, name: str, then: Callable[[], None]) -> None:
        """Add a loaded model, and call `then` under the same lock."""
        with self._lock:
            entry.last_used = self._clock()
            self._by_key[entry.key] = entry
            self._name(entry, name)
            then()

    def take(
        self, keys: Iterable[ModelKey], name: str, *, holder: object = None, pin: bool = False
    ) -> tuple[PoolEntry | None, bool]:
        """Return the first model of these keys, and whether listeners must be notified.

        A `holder` holds the model when it is returned, so that it cannot be unloaded in between.
        Without a holder, and with a lease, waiting unloads are withdrawn.

        Raises
        ------
        Cancelled
            When the holder is a lease that has ended.
        """
        with self._withdrawing() as withdrawn:
            entry = self._first(keys)
            if entry is None or entry.closing:
                return None, False
            if holder is None or isinstance(holder, Lease):
                withdrawn += self._take_unloads(entry)
            if holder is not None:
                self._hold(entry, holder)
            entry.last_used = self._clock()
            changed = pin and not entry.pinned
            entry.pinned = entry.pinned or pin
            return entry, self._name(entry, name) or changed

    def is_closing(self, keys: Iterable[ModelKey]) -> bool:
        """Whether a forced unload of one of these models waits for its users."""
        with self._lock:
            return any(self._by_key[key].closing for key in keys if key in self._by_key)

    def hold(self, name: str, holder: Lease) -> ModelInfo | None:
        """Hold the model of this name, unless it is missing or closing; return it or None."""
        with self._withdrawing() as withdrawn:
            entry = self.find(name)
            if entry is None or entry.closing:
                return None
            withdrawn += self._take_unloads(entry)
            self._hold(entry, holder)
            return entry.info(self._clock())

    def pin(self, name: str, *, pinned: bool) -> ModelInfo:
        """Pin a model, or unpin it.

        Raises
        ------
        ModelNotFoundError
            When no such model is in memory.
        """
        with self._withdrawing() as withdrawn:
            entry = self.named(name)
            entry.pinned = pinned
            if pinned:
                withdrawn += self._take_unloads(entry)
            return entry.info(self._clock())

    def release(self, holder: object) -> list[PoolEntry]:
        """Remove a holder; return the models whose waiting unload begins now."""
        with self._lock:
            if isinstance(holder, Lease):
                holder.over = True
            entries = [e for e in self._by_key.values() if holder in e.holders]
            for entry in entries:
                entry.holders.remove(holder)
                entry.last_used = self._clock()
            return [entry for entry in entries if self._remove_if_unused(entry)]

    def unload(self, unload: Unload) -> tuple[PoolEntry | None, list[Task[object]]]:
        """Remove a model, or let the unload wait until it has no holder.

        Returns
        -------
        PoolEntry or None
            The model, if it was removed.
        list of Task
            The requests to cancel, if it is forced.

        Raises
        ------
        ModelNotFoundError
            When no such model is in memory.
        ModelInUseError
            When it is forced, and code that cannot be cancelled holds it.
        """
        with self._lock:
            entry = self.named(unload.name)
            leases = sum(isinstance(holder, Lease) for holder in entry.holders)
            if unload.force and leases:
                raise ModelInUseError(
                    f"{unload.name} is held by code (pool.lease), which cannot be cancelled: "
                    "leave its with block, then unload.",
                    model=unload.name,
                )
            entry.unloads.append(unload)
            requests = [holder for holder in entry.holders if isinstance(holder, Task)]
            leaves = self._remove_if_unused(entry)
            return (entry if leaves else None), requests if unload.force else []

    def leave(self, choose: Callable[[list[ModelUsage]], Iterable[ModelUsage]]) -> list[PoolEntry]:
        """Atomically remove the models that `choose` returns.

        Parameters
        ----------
        choose : callable
            Called with all models; returns some that have no holder. Its exceptions are
            propagated.
        """
        with self._lock:
            chosen = choose([entry.usage() for entry in self._by_key.values()])
            entries = [e for e in self._by_key.values() if any(c.key == e.key for c in chosen)]
            assert not any(entry.holders for entry in entries), "a model in use must not be evicted"
            for entry in entries:
                self._remove(entry)
            return entries

    def memory_freed(self, entry: PoolEntry) -> None:
        """Record that the memory of a removed model is free."""
        with self._lock:
            if entry in self._leaving:
                self._leaving.remove(entry)

    def clear(self) -> list[Unload]:
        """Drop all models; return the waiting unloads."""
        with self._lock:
            waited = [unload for entry in self._by_key.values() for unload in entry.unloads]
            self._by_key.clear()
            self._leaving.clear()
            return waited

    def _first(self, keys: Iterable[ModelKey]) -> PoolEntry | None:
        """Return the first model of these keys, or None; called under the lock."""
        return next((self._by_key[key] for key in keys if key in self._by_key), None)

    def _remove_if_unused(self, entry: PoolEntry) -> bool:
        """Remove a model without holders if an unload waits; called under the lock."""
        entry.unloads = [unload for unload in entry.unloads if not unload.done]
        if entry.holders:
            for unload in entry.unloads:
                unload.waits_for(len(entry.holders))
            return False
        begun = [unload for unload in entry.unloads if unload.begin()]
        entry.unloads = begun
        if begun:
            self._remove(entry)
        return bool(begun)

    def _remove(self, entry: PoolEntry) -> None:
        del self._by_key[entry.key]
        self._leaving.append(entry)

    def _hold(self, entry: PoolEntry, holder: object) -> None:
        if isinstance(holder, Lease) and holder.over:
            raise Cancelled
        entry.holders.append(holder)
        entry.last_used = self._clock()
        for unload in entry.unloads:
            unload.waits_for(len(entry.holders))

    def _take_unloads(self, entry: PoolEntry) -> list[Unload]:
        """Remove and return the waiting unloads, which are to be withdrawn."""
        unloads, entry.unloads = entry.unloads, []
        return unloads

    @contextlib.contextmanager
    def _withdrawing(self) -> Iterator[list[Unload]]:
        """Hold the lock; withdraw the unloads in the list after it is released.

        Withdrawing calls foreign callbacks, which must not run under the lock.
        """
        withdrawn: list[Unload] = []
        with self._lock:
            yield withdrawn
        for unload in withdrawn:
            unload.withdraw()

    def _name(self, entry: PoolEntry, name: str) -> bool:
        """Give a name to this model only; return whether it is new. Called under the lock."""
        for other in self._by_key.values():
            if other is not entry and name in other.names:
                other.names.remove(name)
                other.names = other.names or [other.plain_name]
        if name in entry.names:
            return False
        entry.names.append(name)
        return True
