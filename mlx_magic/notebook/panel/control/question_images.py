"""The images of the next question, opened on a thread."""

from __future__ import annotations

import itertools
import threading
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import MlxMagicError, RequestError
from mlx_magic.formatting import amount, short_label
from mlx_magic.images import opening as images_opening
from mlx_magic.images.decoding.decode import pixels_of
from mlx_magic.images.image import ImageInput
from mlx_magic.images.limits import MAX_IMAGES
from mlx_magic.images.opening import TakenImages
from mlx_magic.notebook.display.sanitize import to_plain
from mlx_magic.notebook.panel.state import pixel_budget
from mlx_magic.notebook.panel.state.conversation import PanelImage

THUMBNAIL_SIDE = 128
"""Pixels."""

MOST_PROBLEMS = 20
"""Maximum number of problems that are shown; the oldest are dropped first."""

MOST_WAITING = 1_000_000_000
"""Maximum bytes of files that wait to be opened."""

_LONGEST_PROBLEM = 400
_LONGEST_ID = 200
_MORE = "more"


@dataclass(frozen=True, slots=True)
class Opening:
    """An image that is being received or opened.

    Attributes
    ----------
    id, name : str
    fraction : float
        Received part, from 0 to 1.
    """

    id: str
    name: str
    fraction: float = 1.0


class QuestionImages:
    """Ordered images, images being opened, and problems.

    Images are decoded and scaled on one thread, one at a time: so the kernel's event loop
    does not wait, and memory does not hold thirty decodes at once.

    Parameters
    ----------
    changed : callable
        Called on any thread when the state has changed.
    held_images : callable
        Returns the other images that the panel holds, such as those of earlier turns.
    normalize : callable
        Returns the setting with which images are opened.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        held_images: Callable[[], Sequence[ImageInput]] = lambda: (),
        normalize: Callable[[], bool] = lambda: True,
    ) -> None:
        self._changed = changed
        self._normalize = normalize
        self._held_images = held_images
        self._lock = threading.RLock()
        self._ready: list[PanelImage] = []
        self._opening: dict[str, Opening] = {}
        self._current: tuple[str, CancelToken] | None = None
        self._problems: OrderedDict[str, str] = OrderedDict()
        self._dropped_problems = 0
        self._numbers = itertools.count(1)
        self._queue: OrderedDict[str, tuple[str, str, Any, TakenImages | None]] = OrderedDict()
        self._thread_running = False

    @property
    def ready(self) -> tuple[PanelImage, ...]:
        """The images, in order."""
        with self._lock:
            return tuple(self._ready)

    @property
    def opening(self) -> list[Opening]:
        """The images being received or opened."""
        with self._lock:
            return list(self._opening.values())

    @property
    def problems(self) -> dict[str, str]:
        """The newest `MOST_PROBLEMS` problems: one line for each id."""
        with self._lock:
            if not self._dropped_problems:
                return dict(self._problems)
            return {_MORE: f"… and {self._dropped_problems} earlier problems.", **self._problems}

    def announce(self, opening: Opening) -> None:
        """Show an image that is being received."""
        with self._lock:
            if opening.id in self._opening or len(self._opening) < MAX_IMAGES:
                self._opening[opening.id] = replace(opening, name=short_label(opening.name))
        self._changed()

    def open(self, value: Any, name: str, word: str = "", *, as_id: str = "") -> None:
        """Take a value as it is now, and queue it to be opened.

        Parameters
        ----------
        value : object
            Anything that `images.open_images` takes.
        name : str
            Name to show.
        word : str
            Its text in a ``%%vision`` line.
        as_id : str
            Id under which it was announced.
        """
        name = short_label(name)
        with self._lock:
            key = as_id or f"p{next(self._numbers)}"
            reason = self._why_not(key, name, value)
            if not reason:
                try:
                    taken = self._take(name, value)
                except MlxMagicError as error:
                    reason = str(error)
            if not reason:
                self._opening[key] = Opening(key, name)
                self._queue[key] = (name, word, value, taken)
                if not self._thread_running:
                    self._thread_running = True
                    threading.Thread(
                        target=self._open_queued, name="mlx-magic-open", daemon=True
                    ).start()
        if reason:
            self.fail(key, reason)
            return
        self._changed()

    def _take(self, name: str, value: Any) -> TakenImages | None:
        """Take a value as it is now; None for bytes, which cannot change."""
        if isinstance(value, bytes):
            return None
        return images_opening.take_images([(name, value)], normalize=self._normalize())

    def _why_not(self, key: str, name: str, value: Any) -> str:
        """Return why a value cannot be queued; ``""`` if it can."""
        if len(self._ready) + len({*self._opening, key}) > MAX_IMAGES:
            return f"{name}: a question takes at most {MAX_IMAGES} images; remove some first."
        queued = [found for _, _, found, _ in self._queue.values()]
        size = sum(len(found) for found in [*queued, value] if isinstance(found, bytes))
        if size > MOST_WAITING:
            return (
                f"{name} was not added: {amount(size)} of files would wait to be opened, the "
                f"limit is {amount(MOST_WAITING)}; add it again once the others are open."
            )
        return ""

    def put(self, images: Iterable[PanelImage]) -> None:
        """Replace all images by those of an earlier question."""
        with self._lock:
            self._ready = list(images)
        self._changed()

    def fail(self, key: str, text: str) -> None:
        """Report a problem with an announced image."""
        with self._lock:
            self._forget(key)
            if not 0 < len(key) <= _LONGEST_ID or key == _MORE:
                key = f"e{next(self._numbers)}"
            self._problems.pop(key, None)
            self._problems[key] = short_label(text, _LONGEST_PROBLEM)
            while len(self._problems) > MOST_PROBLEMS:
                self._problems.popitem(last=False)
                self._dropped_problems += 1
        self._changed()

    def remove(self, key: str) -> None:
        """Remove an image, or cancel its opening."""
        with self._lock:
            self._ready = [panel_image for panel_image in self._ready if panel_image.id != key]
            self._forget(key)
            self._stop_opening(key)
        self._changed()

    def dismiss(self, key: str) -> None:
        """Dismiss a problem."""
        with self._lock:
            self._problems.pop(key, None)
            if key == _MORE or not self._problems:
                self._dropped_problems = 0
        self._changed()

    def order(self, keys: Iterable[str]) -> None:
        """Reorder the images; those not named stay at the end."""
        with self._lock:
            positions = {key: at for at, key in enumerate(keys)}
            self._ready.sort(key=lambda panel_image: positions.get(panel_image.id, len(positions)))
        self._changed()

    def clear(self) -> None:
        """Remove all images and problems."""
        with self._lock:
            self._ready.clear()
            self._opening.clear()
            self._queue.clear()
            self._problems.clear()
            self._dropped_problems = 0
            self._stop_opening()
        self._changed()

    def _forget(self, key: str) -> None:
        self._opening.pop(key, None)
        self._queue.pop(key, None)

    def _stop_opening(self, key: str | None = None) -> None:
        """Cancel the current opening, if it is that of `key` (or `key` is None); needs the lock."""
        if self._current is not None and key in (None, self._current[0]):
            self._current[1].cancel()

    def _open_queued(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread_running = False
                    return
                key, (name, word, value, taken) = self._queue.popitem(last=False)
            self._open(key, name, word, value, taken)
            # Free the file before the next one is opened.
            del value, taken

    def _open(self, key: str, name: str, word: str, value: Any, taken: TakenImages | None) -> None:
        token = CancelToken()
        with self._lock:
            if key not in self._opening:
                return
            self._current = key, token
        try:
            if isinstance(value, bytes):
                self._require_room(name, pixels_of(value))  # before it is decoded
            if taken is None:
                opened = images_opening.open_images(
                    value, name=name, normalize=self._normalize(), cancel=token
                )
            else:
                opened = taken.open(token)
            for image in opened:
                image.thumbnail(THUMBNAIL_SIDE)
            with self._lock:
                if key not in self._opening:
                    return
                if len(self._ready) + len(opened) > MAX_IMAGES:
                    raise RequestError(
                        f"{name}: a question takes at most {MAX_IMAGES} images; remove some first.",
                        option="images",
                    )
                known = [*(panel_image.image for panel_image in self._ready), *self._held_images()]
                opened = pixel_budget.shared(opened, known)
                self._require_room(name, pixel_budget.added(opened, known))
                words = _words(word, value, len(opened))
                self._ready += [
                    PanelImage(self._unused_id(f"{key}.{at}" if at else key), image, words[at])
                    for at, image in enumerate(opened)
                ]
                del self._opening[key]
        except Cancelled:  # removed meanwhile
            return
        except MlxMagicError as error:
            self.fail(key, str(error))
            return
        except BaseException:
            self.fail(key, f"{name} could not be opened; the kernel's log has the reason.")
            raise
        self._changed()

    def _require_room(self, name: str, new: int) -> None:
        with self._lock:
            ready = [panel_image.image for panel_image in self._ready]
            pixel_budget.require_room(name, new, ready, self._held_images())

    def _unused_id(self, key: str) -> str:
        """Return `key`, or a new id if an image has it: the page chooses the ids of files."""
        taken = {panel_image.id for panel_image in self._ready}
        while key in taken:
            key = f"p{next(self._numbers)}"
        return key


def _words(word: str, value: Any, count: int) -> list[str]:
    """Return the text in a ``%%vision`` line for each image of a value."""
    if count == 1 or not word:
        return [word] * count
    if isinstance(value, (list, tuple)) and len(value) == count and word.isidentifier():
        return [f"{word}[{at}]" for at in range(count)]
    return [""] * count


def image_state(panel_image: PanelImage, seen: str = "") -> dict[str, Any]:
    """Return the data of an image for the page."""
    image = panel_image.image
    thumbnail = image.thumbnail(THUMBNAIL_SIDE)
    data = b64encode(thumbnail.data).decode("ascii")
    return {
        "id": panel_image.id,
        "name": to_plain(panel_image.name),
        "width": image.size[0],
        "height": image.size[1],
        "note": to_plain(image.note or ""),
        "seen": seen,
        "thumb": f"data:{thumbnail.mime};base64,{data}",
    }
