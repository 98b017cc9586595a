"""The panel: assembles its parts, and is its Python interface. A cell has at most one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from mlx_magic import default_session
from mlx_magic import session as sessions
from mlx_magic.argument_checks import short_repr
from mlx_magic.engine.request import DEMO
from mlx_magic.errors import RequestError
from mlx_magic.images.opening import open_images
from mlx_magic.interrupts import Interrupt, deferred
from mlx_magic.notebook.kernel import click_routing
from mlx_magic.notebook.panel.control.image_tray import Tray
from mlx_magic.notebook.panel.control.models import Models
from mlx_magic.notebook.panel.control.namespace import Namespace
from mlx_magic.notebook.panel.control.question_images import QuestionImages
from mlx_magic.notebook.panel.control.turn_actions import Editing, TurnActions
from mlx_magic.notebook.panel.control.turns import Turns
from mlx_magic.notebook.panel.control.update_thread import Updates, activity
from mlx_magic.notebook.panel.state import export, pixel_budget
from mlx_magic.notebook.panel.state.conversation import PanelImage, Turn
from mlx_magic.notebook.panel.widgets.composer import Composer
from mlx_magic.notebook.panel.widgets.controls import fold, guarded, set_trait

if TYPE_CHECKING:
    from mlx_magic.engine.generation import Generation
    from mlx_magic.engine.result import VisionResult
    from mlx_magic.images.image import ImageInput
    from mlx_magic.session import Session


NO_WIDGETS = "The panel needs a front end that shows Jupyter widgets."


class Panel:
    """A panel in the notebook: models, questions, answers. Displays itself.

    Parameters
    ----------
    session : Session, optional
        The session it uses; by default that of the cells.
    ipython : InteractiveShell, optional
        The shell whose variables give images and receive results.

    Attributes
    ----------
    box : ipywidgets.VBox
        The panel's widget.
    """

    def __init__(self, session: Session | None = None, ipython: Any = None) -> None:
        self._session = session or default_session.current()
        self._lock = threading.RLock()
        self._closed = False
        self._stale = True
        self._problem = ""
        self._models_due = 0.0
        self._sent_prompt = ""
        self._sent_at = 0.0
        self._updates = Updates(self._update)
        self._names = Namespace(ipython)
        self._images = QuestionImages(
            self._changed, self._held_images, lambda: self._composer.options.normalize
        )
        self._tray = Tray(
            self._images, run=self._run_prompt, cancel=self.cancel, say=self._show_problem
        )
        self._composer = Composer(self._tray.view)
        if (defaults := self._names.defaults()) is not None:
            self._composer.options.write(defaults)
        self._editing = Editing(self._composer, self._images)
        self._models = Models(self._session, self._changed)
        self._turns = Turns()
        self._actions = TurnActions(
            self._turns, self._names, edit=self.edit, say=self._show_problem
        )
        self._status = widgets.HTML()
        self.box = self._assemble()
        self._wire()
        self._refresh()
        self._models.scan_disk()
        self._updates.wake()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation so far, oldest first."""
        return tuple(self._turns.turns)

    @property
    def result(self) -> VisionResult | None:
        """The newest result; of several compared models, the first one's."""
        results = [a.result for turn in reversed(self.turns) for a in turn.answers if a.result]
        return results[0] if results else None

    def ask(self, prompt: str, images: Any = None, models: Any = None) -> VisionResult | None:
        """Ask with the current options, and wait; the controls keep their contents.

        Parameters
        ----------
        prompt : str
        images : object, optional
            Anything that `mlx_magic.ask` takes.
        models : str or sequence of str, optional
            By default the selected models.

        Returns
        -------
        VisionResult or None
            The first model's; None if it failed: the panel shows the error.

        Raises
        ------
        MlxMagicError
            If the question cannot be asked: no prompt, or an image that cannot be opened.
        """
        normalize = self._composer.options.normalize
        opened = (
            open_images(images, name="images", normalize=normalize) if images is not None else []
        )
        known = [*(panel_image.image for panel_image in self._images.ready), *self._held_images()]
        opened = pixel_budget.shared(opened, known)
        pixel_budget.require_room("images", pixel_budget.added(opened, known), (), known)
        panel_images = [PanelImage(f"a{at}", image) for at, image in enumerate(opened)]
        chosen = [models] if isinstance(models, str) else models or self._composer.chosen
        with deferred() as interrupt:
            turn = self._ask(prompt, list(chosen), panel_images)
            for answer in turn.answers:
                if answer.generation is not None:
                    self._wait_for(answer.generation, interrupt)
            if interrupt.came:
                self.cancel()
        self._update()
        return turn.answers[0].result

    def cancel(self) -> None:
        """Cancel the answers and loads that this panel started; safe from any thread."""
        self._turns.cancel()
        self._models.cancel()
        self._changed()

    def edit(self, turn: str) -> None:
        """Put a turn back into the controls; asking replaces it and all later turns."""
        with self._lock:
            self._editing.begin(self._turns.find(turn))
            self._problem = ""
        self._changed()

    def to_markdown(self) -> str:
        """Return the conversation as Markdown, with thumbnails."""
        return export.to_markdown(self.turns)

    def to_json(self) -> str:
        """Return the conversation as JSON, with name, size and hash of each image."""
        return export.to_json(self.turns)

    def close(self) -> None:
        """Cancel what this panel started, and close its widgets; idempotent."""
        if self._closed:
            return
        self.cancel()
        self._updates.close()
        for undo in self._undo:
            undo()
        with self._lock:
            # A running update ends first; no update starts afterwards.
            self._closed = True
        for widget in {id(w): w for w in _all_widgets(self.box, *self._composer.others)}.values():
            widget.close()

    def __repr__(self) -> str:
        return f"<Panel: {len(self.turns)} turns>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        shown = dict(self.box._repr_mimebundle_() or {})
        # Constant, since nbval compares it.
        return {**shown, "text/plain": NO_WIDGETS}

    def _held_images(self) -> list[ImageInput]:
        """Return the images of the saved draft and of earlier turns."""
        kept = list(self._editing.kept)
        found = [panel_image.image for panel_image in kept]
        for turn in self.turns:
            found += [panel_image.image for panel_image in turn.images]
            for answer in turn.answers:
                # The images as the model received them, possibly scaled down.
                found += answer.result.images if answer.result is not None else ()
        return found

    def _assemble(self) -> widgets.VBox:
        models = fold("Models", self._models.section.box, opened=True)
        self._status.add_class("mlxm-status")
        box = widgets.VBox([self._status, models, self._actions.view, self._composer.box])
        box.add_class("mlxm-panel")
        return box

    def _wire(self) -> None:
        form = self._composer
        form.run.on_click(lambda _: self._run())
        form.new.on_click(lambda _: self._new_conversation())
        form.stop_editing.on_click(lambda _: self._stop_editing())
        form.add.on_click(lambda _: self._add_word())
        form.word.on_msg(lambda _, content, __: self._word_submitted(content))
        form.prompt.observe(lambda change: self._prompt_changed(change["new"]), "value")
        for control in (form.prompt, form.word, form.model, form.compare, *form.others):
            control.observe(lambda _: self._changed(), "value")
        self._undo: list[Callable[[], None]] = [
            # Clicks on Cancel take effect when the kernel receives them, even while a cell runs.
            click_routing.watch_always(form.cancel, self.cancel),
            self._session.watch(self._changed),
            self._names.after_cells(self._changed),
        ]

    def _wait_for(self, generation: Generation, interrupt: Interrupt) -> None:
        """Wait in a cell, receiving clicks on Cancel; the panel shows the outcome."""
        with click_routing.ClickRoute(awaited=False):
            click_routing.wait_blocking(generation.future, lambda: None, lambda: interrupt.came)

    def _changed(self) -> None:
        """Request an update of the view; safe from any thread."""
        self._stale = True
        self._updates.wake()

    def _update(self) -> bool:
        """Update the view; return whether another update is needed without a new event."""
        with self._lock:
            if self._closed:
                return False
            if self._turns.update(self._actions.prepare):
                self._stale = True
            if self._stale or time.monotonic() >= self._models_due:
                # Set after the refresh, so that one that fails is tried again.
                self._stale, self._models_due = False, 0.0
                self._refresh()
                self._models_due = time.monotonic() + 0.5
            return self._turns.running or bool(self._session.running)

    def _refresh(self) -> None:
        with self._lock:
            form, turns = self._composer, self._turns
            choices = self._models.show()
            form.offer(choices, self._session.default_model or DEMO)
            set_trait(form.word, "options", self._names.image_names())
            kinds = {choice.name: choice.kind for choice in choices}
            text_only = [name for name in form.chosen if kinds.get(name) == "text"]
            self._tray.show(
                f"{text_only[0]} is a text model and cannot see images" if text_only else ""
            )
            why = self._why_not_run(text_only)
            form.set_enabled(form.run, why, "Ask (Ctrl-Enter or Cmd-Enter)")
            busy = turns.running or self._models.loading
            form.set_enabled(form.cancel, "" if busy else "Nothing is running", "Stop (Escape)")
            form.set_enabled(
                form.new,
                "" if turns.turns else "There is nothing to clear",
                "Start a new conversation",
            )
            form.set_enabled(
                form.add, "" if form.word.value.strip() else "Enter a variable, path or URL first"
            )
            set_trait(form.follow, "disabled", not turns.turns)
            set_trait(form.stop_editing.layout, "display", None if self._editing.turn else "none")
            hint, problem = self._hint(why)
            form.say(hint, problem=problem)
            set_trait(self._status, "value", activity(self._session, choices))

    def _why_not_run(self, text_only: list[str]) -> str:
        if self._turns.running:
            return "An answer is still running: wait for it, or cancel it"
        if not self._composer.prompt.value.strip():
            return "Write a prompt first"
        if not self._composer.chosen:
            return "Choose a model first"
        if self._images.opening:
            return "The images are being opened"
        if text_only and self._images.ready:
            return f"{text_only[0]} cannot see images: remove them, or choose a vision model"
        return ""

    def _hint(self, why: str) -> tuple[str, bool]:
        if self._problem:
            return self._problem, True
        if self._editing.turn:
            number = self._turns.index_of(self._editing.turn) + 1
            return f"Editing turn {number}: Run replaces it and the turns after it.", False
        return (why if why and not self._turns.running else ""), False

    def _run_prompt(self, prompt: str) -> None:
        """Ask by keyboard, with the page's text: it may be newer than the kernel's."""
        self._composer.prompt.value = prompt
        self._run()
        if not self._composer.prompt.value:
            self._sent_prompt, self._sent_at = prompt, time.monotonic()

    def _prompt_changed(self, text: str) -> None:
        """Clear the prompt again if its last keystrokes arrive after the question."""
        is_echo = (
            bool(text) and text == self._sent_prompt and time.monotonic() - self._sent_at < 2.0
        )
        self._sent_prompt = ""
        if is_echo:
            self._composer.prompt.value = ""

    def _run(self) -> None:
        with guarded(self._show_problem):
            if why := self._why_not_run([]):
                raise RequestError(f"{why}.", option="prompt")
            form = self._composer
            with self._lock:
                self._ask(
                    form.prompt.value,
                    form.chosen,
                    self._images.ready,
                    replaces=self._editing.turn,
                )
                form.prompt.value = ""
                self._images.clear()
                self._editing.end()

    def _ask(
        self, prompt: str, models: list[str], images: Sequence[PanelImage], replaces: str = ""
    ) -> Turn:
        form = self._composer
        with self._lock:
            settings = form.options.read()
            turn = self._turns.ask(
                self._session,
                prompt,
                models,
                images=images,
                settings=settings,
                schema=self._names.schema(settings.schema),
                follows=form.follow.value,
                replaces=replaces,
            )
            self._problem = ""
        self._changed()
        return turn

    def _new_conversation(self) -> None:
        with self._lock:
            self._editing.end()
            self._turns.clear()
            self._problem = ""
        self._changed()

    def _stop_editing(self) -> None:
        with self._lock:
            self._editing.end()
        self._changed()

    def _add_word(self) -> None:
        with guarded(self._show_problem):
            word = self._composer.word.value
            for name, value, text in self._names.named_images(word):
                self._images.open(value, name, text)
            self._composer.word.value = ""

    def _word_submitted(self, content: Any) -> None:
        """Enter in the field does the same as the button beside it."""
        if isinstance(content, Mapping) and content.get("event") == "submit":
            self._add_word()

    def _show_problem(self, problem: str) -> None:
        self._problem = problem
        self._changed()


def _all_widgets(*boxes: widgets.Widget) -> list[widgets.Widget]:
    """Return widgets with their children, layouts and styles, the innermost first."""
    found: list[widgets.Widget] = []
    for box in boxes:
        found += _all_widgets(*getattr(box, "children", ()))
        parts = (box, getattr(box, "layout", None), getattr(box, "style", None))
        found += [part for part in parts if isinstance(part, widgets.Widget)]
    return found


_panel_by_cell: dict[str, Panel] = {}


def panel(session: Session | None = None, ipython: Any = None) -> Panel:
    """Open a panel in the notebook; as the last expression of a cell it is displayed.

    A cell that is run again opens a new panel and closes its previous one.

    Parameters
    ----------
    session : Session, optional
        The session it uses; by default that of the cells.
    ipython : InteractiveShell, optional
        The shell whose variables it sees; by default the running one.

    Returns
    -------
    Panel

    Raises
    ------
    RequestError
        If `session` is not a Session.
    """
    if session is not None and not isinstance(session, sessions.Session):
        raise RequestError(
            f"session is {short_repr(session)}: use an mlx_magic session, or leave it out.",
            option="session",
        )
    if ipython is None:
        from IPython.core.getipython import get_ipython

        ipython = get_ipython()
    opened = Panel(session, ipython)
    if cell := _cell_id(ipython):
        previous = _panel_by_cell.get(cell)
        _panel_by_cell[cell] = opened
        if previous is not None:
            previous.close()
    return opened


def _cell_id(ipython: Any) -> str:
    """Return the id of the running cell; ``""`` if the front end does not send it."""
    parent: Any = getattr(ipython, "get_parent", dict)()
    metadata = parent.get("metadata") if isinstance(parent, Mapping) else None
    return str(metadata.get("cellId") or "") if isinstance(metadata, Mapping) else ""
