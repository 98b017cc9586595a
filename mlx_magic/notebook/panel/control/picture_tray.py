"""Connects the page's picture tray with the pictures of the next question."""

from __future__ import annotations

from collections.abc import Callable

from mlx_magic.errors import MlxMagicError
from mlx_magic.images.limits import MAX_FILE_BYTES, MAX_IMAGES
from mlx_magic.notebook.panel.control.pictures import Opening, Pictures, picture_state
from mlx_magic.notebook.panel.state.uploads import Uploads
from mlx_magic.notebook.panel.widgets.controls import set_trait
from mlx_magic.notebook.panel.widgets.front import PictureTray
from mlx_magic.notebook.panel.widgets.guarded import Guarded


class Tray:
    """Handles the tray's messages and updates the tray.

    Parameters
    ----------
    pictures : Pictures
    run : callable
        Asks the question, with the prompt of the page.
    cancel : callable
    say : callable
        Shows an error.

    Attributes
    ----------
    view : PictureTray
    """

    def __init__(
        self,
        pictures: Pictures,
        *,
        run: Callable[[str], None],
        cancel: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._pictures = pictures
        self._uploads = Uploads(max_bytes=MAX_FILE_BYTES)
        self.run = run
        self.cancel = cancel
        self.view = PictureTray(
            Guarded(self, say), max_bytes=MAX_FILE_BYTES, max_pictures=MAX_IMAGES
        )

    def show(self, why_not: str) -> None:
        """Update the tray.

        Parameters
        ----------
        why_not : str
            Why no pictures can be added now; ``""`` if they can.
        """
        view, pictures = self.view, self._pictures
        shown = {picture["id"]: picture for picture in view.pictures}
        set_trait(view, "pictures", [shown.get(p.id) or picture_state(p) for p in pictures.ready])
        set_trait(
            view,
            "opening",
            [{"id": o.id, "name": o.name, "fraction": o.fraction} for o in pictures.opening],
        )
        problems = [{"id": key, "text": text} for key, text in pictures.problems.items()]
        set_trait(view, "problems", problems)
        set_trait(view, "why_not", why_not)

    def file(self, id: str, name: str, size: int, piece: int, pieces: int, data: bytes) -> None:
        """Receive a piece of a file."""
        in_flight_before = self._uploads.in_flight
        try:
            message = {"id": id, "name": name, "size": size, "piece": piece, "pieces": pieces}
            whole = self._uploads.take(message, data)
        except MlxMagicError as error:
            self._pictures.fail(id, str(error))
            return
        finally:
            self._give_up(in_flight_before, id)
        if whole is not None:
            self._pictures.open(whole, name, as_id=id)
        elif id in self._uploads.in_flight:
            self._pictures.announce(Opening(id, name, self._uploads.fraction(id)))

    def _give_up(self, in_flight_before: list[str], id: str) -> None:
        """Report files whose upload was dropped."""
        names = {opening.id: opening.name for opening in self._pictures.opening}
        for gone in {*in_flight_before} - {*self._uploads.in_flight, id}:
            if gone in names:
                self._pictures.fail(
                    gone, f"{names[gone]} was not received completely: add it again."
                )

    def remove(self, id: str) -> None:
        """Remove a picture, or cancel its upload."""
        self._uploads.drop(id)
        self._pictures.remove(id)

    def order(self, ids: list[str]) -> None:
        """Reorder the pictures."""
        self._pictures.order(ids)

    def clear(self) -> None:
        """Remove all pictures and cancel all uploads."""
        for id in self._uploads.in_flight:
            self._uploads.drop(id)
        self._pictures.clear()

    def dismiss(self, id: str) -> None:
        """Dismiss a problem."""
        self._pictures.dismiss(id)
