"""Actions on a turn: edit, copy as a cell, save, export, cancel one answer."""

from __future__ import annotations

from collections.abc import Callable

from mlx_magic.errors import MlxMagicError
from mlx_magic.notebook.panel.control.live_answer import LiveAnswer
from mlx_magic.notebook.panel.control.namespace import Namespace
from mlx_magic.notebook.panel.control.question_images import QuestionImages
from mlx_magic.notebook.panel.control.turns import Turns
from mlx_magic.notebook.panel.state import cell_text, export
from mlx_magic.notebook.panel.state.conversation import PanelImage, Turn
from mlx_magic.notebook.panel.widgets.composer import Composer
from mlx_magic.notebook.panel.widgets.controls import Guarded
from mlx_magic.notebook.panel.widgets.front import ConversationView
from mlx_magic.options import Settings


class Editing:
    """The turn that is being edited, if any.

    Parameters
    ----------
    form : Composer
    images : QuestionImages

    Attributes
    ----------
    turn : str
        Id of the edited turn; ``""`` if there is none.
    """

    def __init__(self, form: Composer, images: QuestionImages) -> None:
        self.turn = ""
        self._form = form
        self._images = images
        self._draft: tuple[str, tuple[PanelImage, ...], Settings, bool] | None = None

    @property
    def kept(self) -> tuple[PanelImage, ...]:
        """The images of the saved draft."""
        return () if self._draft is None else self._draft[1]

    def begin(self, turn: Turn) -> None:
        """Put a turn into the controls, and save the draft that was there."""
        form, images = self._form, self._images
        if self._draft is None:
            options = form.options.read()
            self._draft = (form.prompt.value, images.ready, options, form.follow.value)
        self.turn = turn.id
        form.prompt.value = turn.prompt
        form.options.write(turn.settings)
        form.follow.value = turn.follows
        form.choose([answer.model for answer in turn.answers])
        images.put(turn.images)

    def end(self) -> None:
        """Restore the saved draft."""
        if self._draft is None:
            return
        prompt, images, options, follows = self._draft
        self._form.prompt.value = prompt
        self._form.options.write(options)
        self._form.follow.value = follows
        self._images.put(images)
        self._draft = None
        self.turn = ""


_MIME = {"markdown": "text/markdown", "json": "application/json"}
_SUFFIX = {"markdown": ".md", "json": ".json"}


class TurnActions:
    """Handles the messages of a conversation's page.

    Parameters
    ----------
    turns : Turns
    names : Namespace
    edit : callable
        Puts the turn with this id back into the controls.
    say : callable
        Shows an error.

    Attributes
    ----------
    view : ConversationView
    """

    def __init__(
        self,
        turns: Turns,
        names: Namespace,
        *,
        edit: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self._turns = turns
        self._names = names
        self.edit = edit
        self.cancel = turns.cancel_one
        self.refresh = turns.refresh
        self.view = ConversationView(Guarded(self, say), turns.state)
        turns.show_on(self.view)

    def prepare(self, turn: Turn, live: LiveAnswer) -> None:
        """Write the cell that says the same as a turn, ready to be copied."""
        words = cell_text.words_for(turn.images, self._names.values).words
        live.cell = cell_text.cell_text(
            turn, live.answer.model, words, defaults=self._names.defaults()
        )

    def save(self, turn: str, index: int, name: str, replace: bool) -> None:
        """Store a result in a variable."""
        live = self._turns.live(turn, index)
        try:
            name = self._names.checked(name)
            if live.answer.result is None:
                self._say(turn, index, "There is no result to save.", ok=False)
                return
            existing = self._names.existing(name)
            if existing and not replace and self._names.values.get(name) is not live.answer.result:
                self._say(turn, index, f"{existing} already. Replace it?", ok=False, ask="replace")
                return
            self._names.define(name, live.answer.result)
        except MlxMagicError as error:
            self._say(turn, index, str(error), ok=False)
            return
        live.saved = name
        self._say(turn, index, f"Saved: the variable {name} holds the result.")

    def cell_used(self, turn: str, index: int) -> None:
        """Define the variables that a copied cell uses."""
        found, live = self._turns.find(turn), self._turns.live(turn, index)
        copied_cell = live.cell
        self.prepare(found, live)
        variables = cell_text.words_for(found.images, self._names.values).variables
        for name, image in variables.items():
            self._names.define(name, image)
        if live.cell != copied_cell:
            self._turns.show(found, live)
            self._say(turn, index, "The variables have changed: copy the cell again.", ok=False)
            return
        made = ", ".join(variables)
        notes = [
            f"Defined in the notebook: {made}." if made else "",
            cell_text.what_is_left_out(found, self._turns.before(found), live.answer.model),
        ]
        self._say(turn, index, " ".join(["The cell is copied.", *filter(None, notes)]))

    def export(self, format: str) -> None:
        """Send the conversation to the browser as a file."""
        turns = self._turns.turns
        text = export.to_json(turns) if format == "json" else export.to_markdown(turns)
        name = export.file_name(turns, _SUFFIX[format])
        self.view.download(name, _MIME[format], text)

    def _say(self, turn: str, index: int, text: str, *, ok: bool = True, ask: str = "") -> None:
        self.view.said(turn, index, ok=ok, text=text, ask=ask)
