"""Connects the page's image tray with the images of the next question."""

from __future__ import annotations

from collections.abc import Callable

from mlx_magic.errors import MlxMagicError
from mlx_magic.images.limits import MAX_FILE_BYTES, MAX_IMAGES
from mlx_magic.notebook.panel.control.question_images import Opening, QuestionImages, image_state
from mlx_magic.notebook.panel.state.uploads import Uploads
from mlx_magic.notebook.panel.widgets.controls import set_trait
from mlx_magic.notebook.panel.widgets.front import ImageTray
from mlx_magic.notebook.panel.widgets.guarded import Guarded


class Tray:
    """Handles the tray's messages and updates the tray.

    Parameters
    ----------
    images : QuestionImages
    run : callable
        Asks the question, with the prompt of the page.
    cancel : callable
    say : callable
        Shows an error.

    Attributes
    ----------
    view : ImageTray
    """

    def __init__(
        self,
        images: QuestionImages,
        *,
        run: Callable[[str], None],
        cancel: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._images = images
        self._uploads = Uploads(max_bytes=MAX_FILE_BYTES)
        self.run = run
        self.cancel = cancel
        self.view = ImageTray(Guarded(self, say), max_bytes=MAX_FILE_BYTES, max_images=MAX_IMAGES)

    def show(self, why_not: str) -> None:
        """Update the tray.

        Parameters
        ----------
        why_not : str
            Why no images can be added now; ``""`` if they can.
        """
        view, images = self.view, self._images
        shown = {image["id"]: image for image in view.images}
        set_trait(view, "images", [shown.get(p.id) or image_state(p) for p in images.ready])
        set_trait(
            view,
            "opening",
            [{"id": o.id, "name": o.name, "fraction": o.fraction} for o in images.opening],
        )
        problems = [{"id": key, "text": text} for key, text in images.problems.items()]
        set_trait(view, "problems", problems)
        set_trait(view, "why_not", why_not)

    def file(self, id: str, name: str, size: int, piece: int, pieces: int, data: bytes) -> None:
        """Receive a piece of a file."""
        in_flight_before = self._uploads.in_flight
        try:
            message = {"id": id, "name": name, "size": size, "piece": piece, "pieces": pieces}
            whole = self._uploads.take(message, data)
        except MlxMagicError as error:
            self._images.fail(id, str(error))
            return
        finally:
            self._give_up(in_flight_before, id)
        if whole is not None:
            self._images.open(whole, name, as_id=id)
        elif id in self._uploads.in_flight:
            self._images.announce(Opening(id, name, self._uploads.fraction(id)))

    def _give_up(self, in_flight_before: list[str], id: str) -> None:
        """Report files whose upload was dropped."""
        names = {opening.id: opening.name for opening in self._images.opening}
        for gone in {*in_flight_before} - {*self._uploads.in_flight, id}:
            if gone in names:
                self._images.fail(gone, f"{names[gone]} was not received completely: add it again.")

    def remove(self, id: str) -> None:
        """Remove an image, or cancel its upload."""
        self._uploads.drop(id)
        self._images.remove(id)

    def order(self, ids: list[str]) -> None:
        """Reorder the images."""
        self._images.order(ids)

    def clear(self) -> None:
        """Remove all images and cancel all uploads."""
        for id in self._uploads.in_flight:
            self._uploads.drop(id)
        self._images.clear()

    def dismiss(self, id: str) -> None:
        """Dismiss a problem."""
        self._images.dismiss(id)
