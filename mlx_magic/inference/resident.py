"""The models in memory, as the pool itself sees them: their names, and who uses them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlx_magic.errors import ModelInUseError, ModelNotFoundError
from mlx_magic.inference.backends.base import LoadedModel
from mlx_magic.inference.checkpoint import Checkpoint
from mlx_magic.inference.model_info import ModelInfo


@dataclass(slots=True)
class Resident:
    """A loaded model with its names and its users; changed under the pool's lock.

    Attributes
    ----------
    checkpoint : Checkpoint
    model : LoadedModel
    trusted : bool
        Whether its load was allowed to run the checkpoint's code.
    names : list of str
        All that it goes by; the first is shown.
    users : int
        Requests that hold it now.
    """

    checkpoint: Checkpoint
    model: LoadedModel
    trusted: bool
    names: list[str] = field(default_factory=list)
    users: int = 0

    def info(self) -> ModelInfo:
        """Return what a person gets to see of it now."""
        checkpoint = self.checkpoint
        return ModelInfo(
            name=self.names[0],
            names=tuple(self.names),
            kind=checkpoint.kind,
            model_type=checkpoint.model_type,
            quantization=checkpoint.quantization,
            nbytes=self.model.nbytes,
            users=self.users,
            path=str(checkpoint.path),
            trusted=self.trusted,
            adapter=str(checkpoint.adapter.path) if checkpoint.adapter else None,
        )


Key = tuple[str, bool]
"""A checkpoint's identity, and whether its load was allowed to run the checkpoint's code."""


class Residents:
    """The models in memory, each under its key and its names; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._by_key: dict[Key, Resident] = {}

    @property
    def models(self) -> list[ModelInfo]:
        """What a person gets to see of them, oldest first."""
        with self._lock:
            return [entry.info() for entry in self._by_key.values()]

    @property
    def loaded(self) -> list[LoadedModel]:
        """The models themselves; what is done with them is the inference thread's."""
        with self._lock:
            return [entry.model for entry in self._by_key.values()]

    def info(self, entry: Resident) -> ModelInfo:
        """Return what a person gets to see of one."""
        with self._lock:
            return entry.info()

    def find(self, name: str) -> Resident | None:
        """Return the model of this name, if there is one."""
        with self._lock:
            return next((e for e in self._by_key.values() if name in e.names), None)

    def named(self, name: str) -> Resident:
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

    def of_folder(self, folder: str) -> Resident | None:
        """Return the model that was loaded from this folder, if there is one."""
        with self._lock:
            return next((e for (path, _), e in self._by_key.items() if path == folder), None)

    def add(self, key: Key, entry: Resident, name: str) -> None:
        """Let in a model that was loaded."""
        with self._lock:
            self._by_key[key] = entry
            self._name(entry, name)

    def take(self, keys: Iterable[Key], name: str, *, lease: bool) -> tuple[Resident | None, bool]:
        """Return the first of these that is there, and whether its name is new.

        With `lease` it has one user more when it is returned: nobody can unload it in between.
        """
        with self._lock:
            entry = next((self._by_key[key] for key in keys if key in self._by_key), None)
            if entry is None:
                return None, False
            entry.users += lease
            return entry, self._name(entry, name)

    def let_go(self, entry: Resident) -> None:
        """End the use of a model by one."""
        with self._lock:
            entry.users -= 1

    def remove(self, name: str) -> Resident:
        """Take a model out.

        Raises
        ------
        ModelNotFoundError
            When no such model is in memory.
        ModelInUseError
            When a request holds it.
        """
        with self._lock:
            entry = self.named(name)
            if entry.users:
                raise ModelInUseError(
                    f"{name} is answering a request: cancel it, or wait, then unload.", model=name
                )
            key = next(k for k, e in self._by_key.items() if e is entry)
            return self._by_key.pop(key)

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._by_key.clear()

    def _name(self, entry: Resident, name: str) -> bool:
        """Let a name stand for this model and no other; under the lock. Say if that is new."""
        for other in self._by_key.values():
            if other is not entry and name in other.names:
                other.names.remove(name)
                other.names = other.names or [str(other.checkpoint.path)]
        if name in entry.names:
            return False
        entry.names.append(name)
        return True
