"""The models in memory: loaded once, shared by everyone in the kernel."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.errors import MemoryBudgetError, ModelInUseError, ModelNotFoundError
from mlx_magic.inference.backends.base import Backend, LoadedModel
from mlx_magic.inference.cancel import Cancelled
from mlx_magic.inference.checkpoint import Checkpoint
from mlx_magic.inference.engine import Engine, Steps
from mlx_magic.inference.work import Clock, Work


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model in the pool, as a person sees it.

    Attributes
    ----------
    name : str
        Alias, folder or repository id it was loaded as.
    kind : {"vision", "text"}
    model_type : str
        Architecture, from config.json.
    quantization : str or None
    nbytes : int
        Bytes of the weights in memory.
    users : int
        Requests that hold it now.
    path : str
        Folder of the checkpoint.
    trusted : bool
        Whether this load was allowed to run the checkpoint's code.
    """

    name: str
    kind: str
    model_type: str
    quantization: str | None
    nbytes: int
    users: int
    path: str
    trusted: bool


@dataclass(slots=True)
class _Entry:
    checkpoint: Checkpoint
    model: LoadedModel
    trusted: bool
    names: list[str] = field(default_factory=list)
    users: int = 0

    def info(self) -> ModelInfo:
        checkpoint = self.checkpoint
        return ModelInfo(
            name=self.names[0],
            kind=checkpoint.kind,
            model_type=checkpoint.model_type,
            quantization=checkpoint.quantization,
            nbytes=self.model.nbytes,
            users=self.users,
            path=str(checkpoint.path),
            trusted=self.trusted,
        )


class Load(Work["ModelInfo | None"]):
    """A load that somebody asked for; its outcome is None when it was cancelled.

    Parameters
    ----------
    name : str
        The model, as it was asked for.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, name: str, *, clock: Clock) -> None:
        super().__init__(clock)
        self.name = name

    def _cancelled_outcome(self) -> None:
        return None


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
        self._lock = threading.RLock()
        self._entries: dict[tuple[str, bool], _Entry] = {}

    @property
    def models(self) -> list[ModelInfo]:
        """The models in memory, oldest first."""
        with self._lock:
            return [entry.info() for entry in self._entries.values()]

    def __iter__(self) -> Iterator[ModelInfo]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
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
                    load.succeed(entry.info())
            except Cancelled:
                load.stopped()

        self._engine.submit(steps(), load.fail)

    @contextlib.contextmanager
    def _lease(self, entry: _Entry) -> Iterator[LoadedModel]:
        with self._lock:
            entry.users += 1
        try:
            yield entry.model
        finally:
            with self._lock:
                entry.users -= 1

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
        entry = yield from self._loaded(checkpoint, checkpoint.name, work)
        return self._lease(entry)

    def unload(self, name: str) -> Future[int]:
        """Unload one model.

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

        def free() -> int:
            size = entry.model.nbytes
            entry.model.close()
            return size

        return self._engine.call(free)

    def _loaded(
        self,
        checkpoint: Checkpoint,
        name: str,
        work: Work[Any],
        *,
        trust_remote_code: bool | None = None,
    ) -> Generator[None, None, _Entry]:
        """Find the model or load it. Permission to run code is part of its identity."""
        folder = str(checkpoint.path.resolve())
        for trusted in (True, False) if trust_remote_code is None else (trust_remote_code,):
            with self._lock:
                entry = self._entries.get((folder, trusted))
                if entry is not None:
                    if name not in entry.names:
                        entry.names.append(name)
                    return entry
        trusted = bool(trust_remote_code)
        checkpoint.require_trust(trusted)
        self._check_memory(checkpoint, name)
        model = yield from self._backends[checkpoint.kind].load(
            checkpoint, trust_remote_code=trusted, cancel=work.token, progress=work.advance
        )
        if work.token.requested:
            model.close()
            raise Cancelled
        entry = _Entry(checkpoint, model, trusted, [name])
        with self._lock:
            self._entries[folder, trusted] = entry
        return entry

    def _check_memory(self, checkpoint: Checkpoint, name: str) -> None:
        limit = self._limit()
        resident = sum(entry.model.nbytes for entry in self._entries.values())
        needed = checkpoint.weight_bytes
        if limit and resident + needed > limit:
            raise MemoryBudgetError(
                f"{name} needs {needed / 1e9:.1f} GB, but of {limit / 1e9:.1f} GB only "
                f"{max(limit - resident, 0) / 1e9:.1f} GB are free: unload a model "
                "(%vision unload NAME), or choose a smaller or quantised one.",
                model=name,
                needed_bytes=needed,
                limit_bytes=limit,
            )

    def _find(self, name: str) -> _Entry | None:
        return next((e for e in self._entries.values() if name in e.names), None)

    def _entry(self, name: str) -> _Entry:
        entry = self._find(name)
        if entry is None:
            loaded = ", ".join(m.name for m in self.models) or "none"
            raise ModelNotFoundError(f"{name} is not loaded; loaded: {loaded}.", model=name)
        return entry
