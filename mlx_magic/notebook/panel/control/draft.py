"""Editing of a turn: fills the controls with it, and restores the draft afterwards."""

from __future__ import annotations

from mlx_magic.notebook.panel.control.pictures import Pictures
from mlx_magic.notebook.panel.state.conversation import Picture, Turn
from mlx_magic.notebook.panel.widgets.composer import Composer
from mlx_magic.options import Settings


class Editing:
    """The turn that is being edited, if any.

    Parameters
    ----------
    form : Composer
    pictures : Pictures

    Attributes
    ----------
    turn : str
        Id of the edited turn; ``""`` if there is none.
    """

    def __init__(self, form: Composer, pictures: Pictures) -> None:
        self.turn = ""
        self._form = form
        self._pictures = pictures
        self._draft: tuple[str, tuple[Picture, ...], Settings, bool] | None = None

    @property
    def kept(self) -> tuple[Picture, ...]:
        """The pictures of the saved draft."""
        return () if self._draft is None else self._draft[1]

    def begin(self, turn: Turn) -> None:
        """Put a turn into the controls, and save the draft that was there."""
        form, pictures = self._form, self._pictures
        if self._draft is None:
            options = form.options.read()
            self._draft = (form.prompt.value, pictures.ready, options, form.follow.value)
        self.turn = turn.id
        form.prompt.value = turn.prompt
        form.options.write(turn.settings)
        form.follow.value = turn.follows
        form.choose([answer.model for answer in turn.answers])
        pictures.put(turn.pictures)

    def end(self) -> None:
        """Restore the saved draft."""
        if self._draft is None:
            return
        prompt, pictures, options, follows = self._draft
        self._form.prompt.value = prompt
        self._form.options.write(options)
        self._form.follow.value = follows
        self._pictures.put(pictures)
        self._draft = None
        self.turn = ""
