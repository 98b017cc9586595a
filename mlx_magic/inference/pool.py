"""The models in memory: loaded once, shared by everyone in the kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from mlx_magic.errors import (
    EngineError,
    MlxMagicError,
    ModelError,
)
from mlx_magic.inference.backends import device
from mlx_magic.inference.backends.base import Backend, LoadedModel
from mlx_magic.inference.backends.failure import load_error, without_frames
from mlx_magic.inference.cancel import Cancelled
from mlx_magic.inference.checkpoint import Checkpoint
from mlx_magic.inference.engine import Engine, Steps
from mlx_magic.inference.loading import Loading, Loads, require_room
from mlx_magic.inference.model_info import Load, ModelInfo
from mlx_magic.inference.resident import Key, Resident, Residents
from mlx_magic.inference.reuse import Reuse
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
        self._residents = Residents()
        self._loads = Loads()
        engine.when_lost(self._forget)

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
        adapter: str | os.PathLike[str] | None = None,
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
        adapter : str or path, optional
            Folder of a LoRA adapter; the model with it is one of its own.

        Raises
        ------
        ModelError
            When it cannot be loaded, or the load was cancelled.
        """
        if self._opener is None:
            raise EngineError("This pool belongs to no session: use mlx_magic.pool.")
        load = self._opener(
            os.fspath(model),
            alias=alias,
            trust_remote_code=trust_remote_code,
            adapter=None if adapter is None else os.fspath(adapter),
        )
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
    def reuse(self) -> Reuse:
        """What the models were spared by what they saw and read before, all together."""
        return Reuse.total(model.reuse for model in self._residents.loaded)

    def forget(self) -> int:
        """Let go of what is kept for reuse: pictures that were seen, prompts that were read.

        Returns
        -------
        int
            Bytes given back.
        """

        def forget() -> int:
            return sum(model.forget() for model in self._residents.loaded)

        return wait(self._engine.call(forget, soon=True))

    @property
    def models(self) -> list[ModelInfo]:
        """The models in memory, oldest first."""
        return self._residents.models

    def __iter__(self) -> Iterator[ModelInfo]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._residents.find(name) is not None

    def __getitem__(self, name: str) -> ModelInfo:
        return self._residents.info(self._residents.named(name))

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
                load.succeed(self._residents.info(entry))
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
            self._residents.let_go(entry)
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
        entry = self._residents.remove(name)
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
        entry = self._residents.of_folder(str(Path(folder).resolve()))
        return entry.checkpoint if entry else None

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
        folder = checkpoint.identity
        keys = [(folder, trusted) for trusted in (True, False)]
        if trust_remote_code is not None:
            keys = [(folder, trust_remote_code)]
        if (entry := self._taken(keys, name, lease=lease)) is not None:
            return entry
        key = next((key for key in keys if key in self._loads), keys[-1])
        checkpoint.require_trust(key[1])
        try:
            begin = partial(self._load, checkpoint, key)
            with self._loads.joined(key, work, name, begin) as loading:
                yield from loading.follow(work)
                entry = self._taken([key], name, lease=lease)
        finally:
            self._tell()
        assert entry is not None, "the load keeps it in the pool until all have taken it"
        return entry

    def _taken(self, keys: list[Key], name: str, *, lease: bool) -> Resident | None:
        """Take a model that is in memory, under this name."""
        entry, renamed = self._residents.take(keys, name, lease=lease)
        if renamed:
            self._tell()
        return entry

    def _load(self, checkpoint: Checkpoint, key: Key, loading: Loading) -> Steps:
        """Load a model for all who wait for it."""
        backend, trusted = self._backends[checkpoint.kind], key[1]
        try:
            taken = self._loads.nbytes + sum(model.nbytes for model in self.models)
            needed = backend.estimate(checkpoint)
            require_room(needed, taken, self._limit(), checkpoint.name)
            loading.nbytes = needed
            model = yield from backend.load(
                checkpoint,
                trust_remote_code=trusted,
                cancel=loading.token,
                progress=loading.advance,
            )
        except (Cancelled, MlxMagicError):
            raise
        except Exception as error:
            raise load_error(backend.library, checkpoint, error) from without_frames(error)
        names = loading.names
        if not names:
            model.close()
            raise Cancelled
        # In use by those who wait, until the last of them has taken it.
        entry = Resident(checkpoint, model, trusted, users=1)
        loading.when_left = partial(self._residents.let_go, entry)
        self._residents.add(key, entry, names[0])

    def _forget(self) -> None:
        """Forget every model: their arrays belong to a thread that has died."""
        self._residents.clear()
        self._loads.forget()
        self._tell()
