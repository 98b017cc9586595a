"""The models of a panel: listing, loading, unloading, and their outcomes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlx_magic.errors import MlxMagicError
from mlx_magic.formatting import amount, shown
from mlx_magic.model_pool.model_info import Load
from mlx_magic.model_pool.unload import Unload
from mlx_magic.notebook.display import pool_messages
from mlx_magic.notebook.panel.state.model_choices import ModelChoice, choices, loading, unloading
from mlx_magic.notebook.panel.widgets.guarded import guarded
from mlx_magic.notebook.panel.widgets.models_section import ModelsSection
from mlx_magic.session import Session

if TYPE_CHECKING:
    from mlx_magic.models.catalog.local_models import ModelOnDisk

_log = logging.getLogger(__name__)


class Models:
    """Updates a `ModelsSection` and handles its buttons.

    Parameters
    ----------
    session : Session
    changed : callable
        Called on any thread when the state has changed.

    Attributes
    ----------
    section : ModelsSection
    """

    def __init__(self, session: Session, changed: Callable[[], None]) -> None:
        self._session = session
        self._changed = changed
        self._loads: set[Load] = set()
        self._loaded_names: set[str] = set()
        self._lock = threading.Lock()
        self._disk: list[ModelOnDisk] = []
        self._scanning = False
        self._message = ("", False)
        self.section = ModelsSection(
            self.load, self.unload, self.cancel_of, self.pin, self.scan_disk
        )

    @property
    def loading(self) -> bool:
        """Whether a load that this panel started is running."""
        with self._lock:
            return bool(self._loads)

    def show(self) -> list[ModelChoice]:
        """Update the section; return the models to choose from."""
        with self._lock:
            disk, message = self._disk, self._message
            loaded, self._loaded_names = self._loaded_names, set()
        found = choices(self._session, disk)
        memory = self._session.pool.memory
        self.section.show(found, active=memory.active, cached=memory.cached, limit=memory.limit)
        self.section.say(message[0], problem=message[1])
        for name in loaded:
            self.section.loaded(name)
        return found

    def scan_disk(self) -> None:
        """Scan the disk for models, on a thread, as a large cache takes time."""
        with self._lock:
            if self._scanning:
                return
            self._scanning = True

        def run() -> None:
            try:
                found = self._session.on_disk()
                with self._lock:
                    self._disk = found
            except Exception as error:
                _log.exception("The models on disk could not be listed.")
                self._say(f"The models on disk could not be listed: {error}", problem=True)
            finally:
                with self._lock:
                    self._scanning = False
            self._changed()

        threading.Thread(target=run, name="mlx-magic-disk", daemon=True).start()

    def load(self, name: str) -> None:
        """Start to load a model."""
        with guarded(lambda problem: self._say(problem, problem=True)):
            load = self._session.pool.submit_load(name)
            with self._lock:
                self._loads.add(load)
            self._say("")
            load.future.add_done_callback(lambda _: self._loaded(load))

    def unload(self, name: str) -> None:
        """Start to unload a model, which waits for the requests that use it."""
        with guarded(lambda problem: self._say(problem, problem=True)):
            unload = self._session.pool.submit_unload(name)
            if not unload.done:
                when = "" if unload.begun else " once no request uses it"
                self._say(f"Unloading {name}{when} …")
            unload.future.add_done_callback(lambda _: self._unloaded(unload))

    def pin(self, name: str, pinned: bool) -> None:
        """Protect a model from eviction, or allow it."""
        with guarded(lambda problem: self._say(problem, problem=True)):
            pool = self._session.pool
            info = pool.pin(name) if pinned else pool.unpin(name)
            self._say(f"{'Pinned' if pinned else 'Unpinned'} {info.name}.")

    def cancel_of(self, name: str) -> None:
        """Cancel all loads and unloads of a model, also those started by cells."""
        running = self._session.running
        for model, task in loading(running):
            if model == name:
                task.cancel()
        names = self._session.pool[name].names if name in self._session.pool else ()
        for unload in unloading(running):
            if unload.name in names:
                unload.cancel()

    def cancel(self) -> None:
        """Cancel the loads that this panel started; safe from any thread."""
        with self._lock:
            loads = list(self._loads)
        for load in loads:
            load.cancel()

    def _unloaded(self, unload: Unload) -> None:
        error = unload.future.exception()
        if error is not None:
            self._say(f"{unload.name} could not be unloaded: {error}", problem=True)
        else:
            self._say(pool_messages.unloaded(unload))

    def _loaded(self, load: Load) -> None:
        with self._lock:
            self._loads.discard(load)
        error = load.future.exception()
        if isinstance(error, MlxMagicError):
            self._say(str(error), problem=True)
        elif error is not None:
            self._say(f"{load.name} could not be loaded: {error}", problem=True)
        elif (info := load.future.result()) is None:
            self._say(f"Cancelled: {load.name} was not loaded.")
        else:
            with self._lock:
                # `show` uses it later: the inference thread must not send widget messages.
                self._loaded_names.add(load.name)
            loaded = f"Loaded {load.name}: {info.kind}, {amount(info.nbytes)}."
            self._say(" ".join([*load.notes, loaded]))

    def _say(self, text: str, *, problem: bool = False) -> None:
        with self._lock:
            self._message = (shown(text, 2000), problem)
        self._changed()
