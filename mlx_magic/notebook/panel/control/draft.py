"""Editing of a turn: fills the controls with it, and restores the draft afterwards."""

from __future__ import annotations

from mlx_magic.notebook.panel.control.question_images import QuestionImages
from mlx_magic.notebook.panel.state.conversation import PanelImage, Turn
from mlx_magic.notebook.panel.widgets.composer import Composer
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
