"""The models in memory: loaded once, shared by everyone in the kernel."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mlx_magic.errors import (
    EngineError,
    MemoryBudgetError,
    MlxMagicError,
    ModelError,
    ModelInUseError,
    ModelNotFoundError,
)
from mlx_magic.inference.backends import device
from mlx_magic.inference.backends.base import Backend, LoadedModel
from mlx_magic.inference.backends.failure import load_error, without_frames
from mlx_magic.inference.cancel import Cancelled
from mlx_magic.inference.checkpoint import Checkpoint
from mlx_magic.inference.engine import Engine, Steps
from mlx_magic.inference.model_info import Load, ModelInfo
from mlx_magic.inference.resident import Resident
from mlx_magic.inference.work import Clock, Work, wait


class ModelPool:
    """Models in memory, keyed by their folder.

    Loading and freeing happen on the engine's thread; everything else may be
    called from any thread.

    Parameters
    ----------
    engine : Engine
    backends : mapping of str to Backend
        One for each kind, ``"vision"`` and ``"text"``.
    clock : callable
        Seconds, monotonic.
    limit : callable, optional
        Bytes that models may take in all; 0 is no limit.
    """

    def __init__(
        self,
        engine: Engine,
        backends: Mapping[str, Backend],
        *,
        clock: Clock,
        limit: Callable[[], int] = lambda: 0,
    ) -> None:
        self._engine = engine
        self._backends = backends
        self._clock = clock
        self._limit = limit
        self._opener: Callable[..., Load] | None = None
        self._tell: Callable[[], None] = lambda: None
        self._lock = threading.RLock()
        self._entries: dict[tuple[str, bool], Resident] = {}

    def opens_with(self, opener: Callable[..., Load]) -> None:
        """Say what finds and loads a model by its name; for the session."""
        self._opener = opener

    def tells(self, callback: Callable[[], None]) -> None:
        """Say what is called, under no lock, when models or leases change; for the session."""
        self._tell = callback

    def load(
        self,
        model: str | os.PathLike[str],
        alias: str | None = None,
        *,
        trust_remote_code: bool = False,
    ) -> ModelInfo:
        """Load a model, and wait for it.

        Parameters
        ----------
        model : str or path
            Alias, folder or Hub repository id.
        alias : str, optional
            A short name to give it.
        trust_remote_code : bool
            Whether this load may run the checkpoint's own code.

        Raises
        ------
        ModelError
            When it cannot be loaded, or the load was cancelled.
        """
        if self._opener is None:
            raise EngineError("This pool belongs to no session: use mlx_magic.pool.")
        load = self._opener(os.fspath(model), alias=alias, trust_remote_code=trust_remote_code)
        info = wait(load.future, load.cancel)
        if info is None:
            raise ModelError(f"The load of {load.name} was cancelled.", model=load.name)
        return info

    def unload(self, name: str) -> int:
        """Unload a model, and wait until its memory is free.

        Returns
        -------
        int
            Bytes given back.

        Raises
        ------
        ModelNotFoundError
            When no such model is in memory.
        ModelInUseError
            When a request holds it.
        """
        return wait(self.submit_unload(name))

    @property
    def memory(self) -> device.Memory:
        """MLX's memory: bytes active, cached, and what may be used."""
        return device.memory()

    @property
    def models(self) -> list[ModelInfo]:
        """The models in memory, oldest first."""
        with self._lock:
            return [entry.info() for entry in self._entries.values()]

    def __iter__(self) -> Iterator[ModelInfo]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    def __contains__(self, name: object) -> bool:
        with self._lock:
            return isinstance(name, str) and self._find(name) is not None

    def __getitem__(self, name: str) -> ModelInfo:
        with self._lock:
            return self._entry(name).info()

    def __repr__(self) -> str:
        names = ", ".join(f"{m.name} ({m.nbytes / 1e6:.0f} MB)" for m in self.models)
        return f"<ModelPool: {names or 'empty'}>"

    def submit_load(
        self, load: Load, checkpoint: Checkpoint, *, trust_remote_code: bool = False
    ) -> None:
        """Queue a load; nothing happens if the model is there already.

        Parameters
        ----------
        load : Load
            Takes the progress and the outcome.
        checkpoint : Checkpoint
        trust_remote_code : bool
            Whether this load may run the checkpoint's own code.
        """

        def steps() -> Steps:
            try:
                load.enter("loading")
                entry = yield from self._loaded(
                    checkpoint, checkpoint.name, load, trust_remote_code=trust_remote_code
                )
                with self._lock:
                    info = entry.info()
                load.succeed(info)
            except Cancelled:
                load.stopped()

        self._engine.submit(steps(), load.fail)

    @contextlib.contextmanager
    def _lease(self, entry: Resident) -> Iterator[LoadedModel]:
        """Let go of an entry at the end; `_loaded` has counted its user."""
        try:
            self._tell()
            yield entry.model
        finally:
            with self._lock:
                entry.users -= 1
            self._tell()

    def leased(
        self, checkpoint: Checkpoint, work: Work[Any]
    ) -> Generator[None, None, contextlib.AbstractContextManager[LoadedModel]]:
        """Load if needed, then lease; in slices on the inference thread.

        A leased model is never unloaded.

        Parameters
        ----------
        checkpoint : Checkpoint
        work : Work
            Takes the progress and may cancel the load.

        Returns
        -------
        context manager
            Gives the `LoadedModel` and ends the lease.
        """
        entry = yield from self._loaded(checkpoint, checkpoint.name, work, lease=True)
        return self._lease(entry)

    def submit_unload(self, name: str) -> Future[int]:
        """Take a model out of the pool, and free it as soon as the engine's thread can.

        Returns
        -------
        concurrent.futures.Future of int
            Bytes given back, once they are.

        Raises
        ------
        ModelNotFoundError
            When no such model is in memory.
        ModelInUseError
            When a request holds it.
        """
        with self._lock:
            entry = self._entry(name)
            if entry.users:
                raise ModelInUseError(
                    f"{name} is answering a request: cancel it, or wait, then unload.", model=name
                )
            key = next(k for k, e in self._entries.items() if e is entry)
            del self._entries[key]
        self._tell()

        def free() -> int:
            size = entry.model.nbytes
            entry.model.close()
            return size

        # Nobody holds it: it need not wait for a generation of another model.
        freed = self._engine.call(free, soon=True)
        freed.add_done_callback(lambda _: self._tell())
        return freed

    def checkpoint(self, folder: str | os.PathLike[str]) -> Checkpoint | None:
        """Return the checkpoint of a model that was loaded from this folder."""
        wanted = str(Path(folder).resolve())
        with self._lock:
            entries = [e for (path, _), e in self._entries.items() if path == wanted]
            return entries[0].checkpoint if entries else None

    def _loaded(
        self,
        checkpoint: Checkpoint,
        name: str,
        work: Work[Any],
        *,
        trust_remote_code: bool | None = None,
        lease: bool = False,
    ) -> Generator[None, None, Resident]:
        """Find the model or load it. Permission to run code is part of its identity.

        With `lease` it is in use when it is returned: nobody can unload it in between.
        """
        folder = str(checkpoint.path.resolve())
        for trusted in (True, False) if trust_remote_code is None else (trust_remote_code,):
            with self._lock:
                entry = self._entries.get((folder, trusted))
                renamed = entry is not None and self._name(entry, name)
                if entry is not None:
                    entry.users += lease
            if renamed:
                self._tell()
            if entry is not None:
                return entry
        trusted = bool(trust_remote_code)
        checkpoint.require_trust(trusted)
        backend = self._backends[checkpoint.kind]
        try:
            self._check_memory(backend.estimate(checkpoint), name)
            model = yield from backend.load(
                checkpoint, trust_remote_code=trusted, cancel=work.token, progress=work.advance
            )
        except (Cancelled, MlxMagicError):
            raise
        except Exception as error:
            raise load_error(backend.library, checkpoint, error) from without_frames(error)
        if work.token.requested:
            model.close()
            raise Cancelled
        entry = Resident(checkpoint, model, trusted, users=int(lease))
        with self._lock:
            self._entries[folder, trusted] = entry
            self._name(entry, name)
        self._tell()
        return entry

    def _name(self, entry: Resident, name: str) -> bool:
        """Let a name stand for this model and no other; under the lock. Say if that is new."""
        for other in self._entries.values():
            if other is not entry and name in other.names:
                other.names.remove(name)
                other.names = other.names or [str(other.checkpoint.path)]
        if name in entry.names:
            return False
        entry.names.append(name)
        return True

    def _check_memory(self, needed: int, name: str) -> None:
        limit = self._limit()
        resident = sum(model.nbytes for model in self.models)
        if limit and resident + needed > limit:
            raise MemoryBudgetError(
                f"{name} needs {needed / 1e9:.1f} GB, but of {limit / 1e9:.1f} GB only "
                f"{max(limit - resident, 0) / 1e9:.1f} GB are free: unload a model "
                "(%vision unload NAME), or choose a smaller or quantised one.",
                model=name,
                needed_bytes=needed,
                limit_bytes=limit,
            )

    def _find(self, name: str) -> Resident | None:
        return next((e for e in self._entries.values() if name in e.names), None)

    def _entry(self, name: str) -> Resident:
        entry = self._find(name)
        if entry is None:
            loaded = ", ".join(m.name for m in self.models) or "none"
            raise ModelNotFoundError(f"{name} is not loaded; loaded: {loaded}.", model=name)
        return entry
