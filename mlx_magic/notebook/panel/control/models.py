"""The models of a panel: their list with a memory bar, loading, unloading, and the outcomes."""

from __future__ import annotations

import html
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from mlx_magic.errors import MlxMagicError
from mlx_magic.formatting import amount, shown
from mlx_magic.model_pool.model_info import Load
from mlx_magic.model_pool.unload import Unload
from mlx_magic.notebook.display import formulas, pool_messages, sanitize
from mlx_magic.notebook.panel.state.model_choices import ModelChoice, choices, loading, unloading
from mlx_magic.notebook.panel.widgets.controls import button, guarded, line, message_html, set_trait
from mlx_magic.session import Session

if TYPE_CHECKING:
    from mlx_magic.models.catalog.local_models import ModelOnDisk


_COLORS = 5
_KEEP = "Never evict this model"
_LET_GO = "Allow this model to be evicted"


class ModelsSection:
    """Rows of models with their buttons, a memory bar, and a field for any other model.

    Parameters
    ----------
    load, unload, cancel : callable
        Callbacks of the buttons; each takes the model's name.
    pin : callable
        Takes the model's name, and whether to pin it.
    refresh : callable
        Scans the disk again.

    Attributes
    ----------
    box : ipywidgets.VBox
        The widget to show.
    """

    def __init__(
        self,
        load: Callable[[str], None],
        unload: Callable[[str], None],
        cancel: Callable[[str], None],
        pin: Callable[[str, bool], None],
        refresh: Callable[[], None],
    ) -> None:
        self._actions: dict[str, Callable[[str], None]] = {
            "Load": load,
            "Unload": unload,
            "Cancel load": cancel,
            "Cancel unload": cancel,
            "Pin": lambda name: pin(name, True),
            "Unpin": lambda name: pin(name, False),
        }
        self._rows: dict[str, _Row] = {}
        self.memory = widgets.HTML()
        self._shared = _Shared(self.memory)
        self.memory.add_class("mlxm-memory")
        self.list = widgets.VBox()
        self.list.add_class("mlxm-models")
        self.name = widgets.Combobox(
            description="Another model",
            style={"description_width": "initial"},
            placeholder="a folder, or organization/name on the Hub",
            continuous_update=True,
            layout=widgets.Layout(flex="1 1 16em", width="auto", min_width="0"),
        )
        self.name.add_class("mlxm-model-name")
        self.load_other = button("Load", "Enter a model first", disabled=True)
        self.rescan = button("Refresh", "Scan the disk for models again")
        self.load_other.on_click(lambda _: self._load_other(load))
        self.rescan.on_click(lambda _: refresh())
        self.name.observe(self._named, "value")
        other = line(self.name, self.load_other, self.rescan)
        self.note = widgets.HTML()
        self.box = widgets.VBox([self.memory, self.list, other, self.note])

    def show(self, choices: Sequence[ModelChoice], *, active: int, cached: int, limit: int) -> None:
        """Update rows and bar; only changes are sent. See `memory_bar`."""
        set_trait(self.memory, "value", memory_bar(choices, active, cached, limit))
        rows = []
        for choice in choices:
            row = self._rows.get(choice.name)
            if row is None:
                row = _Row(choice, self._shared, self._press)
            rows.append(row)
            row.show(choice)
        gone = [row for row in self._rows.values() if row not in rows]
        order = tuple(row.box for row in rows)
        if order != tuple(self.list.children):
            self.list.children = order
        self._rows = {row.name: row for row in rows}
        for row in gone:
            row.close()

    def say(self, text: str, *, problem: bool = False) -> None:
        """Show one line below the list."""
        set_trait(self.note, "value", message_html(text, problem=problem))

    def loaded(self, name: str) -> None:
        """Clear the field if it names the loaded model."""
        if self.name.value.strip() == name:
            self.name.value = ""

    def _press(self, action: str, name: str) -> None:
        self._actions[action](name)

    def _named(self, _: Any) -> None:
        named = bool(self.name.value.strip())
        self.load_other.disabled = not named
        self.load_other.tooltip = "Load this model" if named else "Enter a model first"

    def _load_other(self, load: Callable[[str], None]) -> None:
        load(self.name.value.strip())


class _Shared:
    """Layouts and styles that all rows share, as each of them is a comm."""

    def __init__(self, html: widgets.HTML) -> None:
        self.text = widgets.Layout(flex="1 1 12em", width="auto", min_width="0")
        self.button = widgets.Layout(width="auto", min_width="7.5em", flex="0 0 auto")
        self.row = widgets.Layout()
        self.button_style = widgets.ButtonStyle()
        self.text_style = html.style


class _Row:
    def __init__(
        self, choice: ModelChoice, shared: _Shared, press: Callable[[str, str], None]
    ) -> None:
        self.name = choice.name
        self._shared, self._press = shared, press
        self.pin: widgets.Button | None = None
        action, why_not = _action(choice)
        self.text = widgets.HTML(row_html(choice), layout=shared.text, style=shared.text_style)
        self.button = widgets.Button(
            description=action,
            disabled=bool(why_not),
            tooltip=why_not or f"{action} {choice.title}",
            layout=shared.button,
            style=shared.button_style,
        )
        self._clicked(self.button)
        self.box = widgets.HBox(
            [self.text, self.button], layout=shared.row, _dom_classes=["mlxm-model"]
        )

    def show(self, choice: ModelChoice) -> None:
        action, why_not = _action(choice)
        set_trait(self.text, "value", row_html(choice))
        set_trait(self.button, "description", action)
        set_trait(self.button, "disabled", bool(why_not))
        set_trait(self.button, "tooltip", why_not or f"{action} {choice.title}")
        if choice.state == "loaded":
            self._show_pin(choice)
        elif self.pin is not None:
            self.box.children = [self.text, self.button]
            self.pin.close()
            self.pin = None

    def close(self) -> None:
        for widget in (self.box, self.text, self.button, self.pin):
            if widget is not None:
                widget.close()

    def _show_pin(self, choice: ModelChoice) -> None:
        action = "Unpin" if choice.pinned else "Pin"
        tip = _LET_GO if choice.pinned else _KEEP
        if self.pin is None:
            # Created only for loaded models, as there may be a hundred models on disk.
            self.pin = widgets.Button(
                description=action,
                tooltip=tip,
                layout=self._shared.button,
                style=self._shared.button_style,
            )
            self._clicked(self.pin)
            self.box.children = [self.text, self.pin, self.button]
        set_trait(self.pin, "description", action)
        set_trait(self.pin, "tooltip", tip)

    def _clicked(self, button: widgets.Button) -> None:
        button.on_click(lambda _: self._press(button.description, self.name))


def row_html(choice: ModelChoice) -> str:
    """Return the HTML of a model's row."""
    badge = choice.state + (", in use" if choice.users else "")
    badge += ", pinned" if choice.pinned else ""
    badge += ", unloading" if choice.leaving else ""
    default = '<span class="mlxm-badge">default</span>' if choice.default else ""
    bar = ""
    if choice.progress is not None and choice.progress.total > 0:
        share = 100 * min(choice.progress.done / choice.progress.total, 1.0)
        bar = f'<span class="mlxm-bar"><span style="width:{share:.1f}%"></span></span>'
    state = choice.state.replace(" ", "-")
    return (
        f'<span class="mlxm-model-title {formulas.UNSET}">{_escaped(choice.title)}</span> '
        f'<span class="mlxm-badge mlxm-{state} {formulas.UNSET}">{_escaped(badge)}</span>{default}'
        f'<span class="mlxm-quiet mlxm-model-line {formulas.UNSET}">'
        f"{_escaped(choice.line)}</span>{bar}"
    )


def memory_bar(choices: Sequence[ModelChoice], active: int, cached: int, limit: int) -> str:
    """Return a bar of the models' shares of memory, with a legend.

    Parameters
    ----------
    choices : sequence of ModelChoice
    active, cached, limit : int
        Bytes of MLX: active arrays, buffer cache, limit (0: unknown).
    """
    loaded = [choice for choice in choices if choice.state == "loaded"]
    weights = sum(choice.nbytes for choice in loaded)
    # `active` may not include all weights yet.
    other = max(active - weights, 0)
    parts = [(c.name, c.nbytes, f"mlxm-share{at % _COLORS}") for at, c in enumerate(loaded)]
    parts += [("answers", other, "mlxm-share-work"), ("kept for reuse", cached, "mlxm-kept")]
    parts = [part for part in parts if part[1] >= 100_000]
    total = limit or sum(size for _, size, _ in parts) or 1
    segments = "".join(
        f'<span class="{look}" style="width:{100 * size / total:.2f}%" '
        f'title="{_escaped(name)}: {amount(size)}"></span>'
        for name, size, look in parts
    )
    legend = "".join(
        f'<span><i class="{look}"></i>{_escaped(name)} {amount(size)}</span>'
        for name, size, look in parts
    )
    used = weights + other + cached
    of = f" of {amount(limit)}" if limit else ""
    empty = used < 100_000 and not loaded
    words = f"No model is loaded{_free(limit)}" if empty else f"{amount(used)}{of} in use"
    return (
        f'<div class="mlxm-memory-words"><span>Memory</span><span>{_escaped(words)}</span></div>'
        f'<div class="mlxm-memory-bar" role="img" aria-label="Memory: {_escaped(words)}">'
        f"{segments}</div>"
        f'<div class="mlxm-legend {formulas.UNSET}">{legend}</div>'
    )


def _escaped(text: str) -> str:
    return html.escape(sanitize.to_plain(text))


def _free(limit: int) -> str:
    return f"; {amount(limit)} in all" if limit else ""


def _action(choice: ModelChoice) -> tuple[str, str]:
    """Return the label of the row's button, and why it is disabled (``""``: enabled)."""
    if choice.state == "loaded":
        return "Cancel unload" if choice.leaving else "Unload", ""
    if choice.state == "loading":
        return "Cancel load", ""
    return "Load", choice.problem


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
