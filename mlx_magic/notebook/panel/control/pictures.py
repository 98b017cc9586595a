"""The pictures that stand ready for the next question, opened off the loop."""

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
from mlx_magic.notebook.display.sanitize import to_plain
from mlx_magic.notebook.panel.state import pixel_budget
from mlx_magic.notebook.panel.state.conversation import Picture

THUMBNAIL_SIDE = 128
"""Pixels."""

MOST_PROBLEMS = 20
"""Problems that are shown; the oldest go first."""

MOST_WAITING = 1_000_000_000
"""Bytes of files that wait to be opened."""

_LONGEST_PROBLEM = 400
_LONGEST_ID = 200
_MORE = "more"


@dataclass(frozen=True, slots=True)
class Opening:
    """A picture on its way.

    Attributes
    ----------
    id, name : str
    fraction : float
        How much of it has arrived, from 0 to 1.
    """

    id: str
    name: str
    fraction: float = 1.0


class Pictures:
    """Pictures in order, those on their way, and what went wrong.

    Opening decodes and scales: that is done on a thread of its own, one picture
    after the other, so that neither the kernel's loop waits nor memory is filled
    by thirty pictures at once.

    Parameters
    ----------
    changed : callable
        Called, on any thread, when there is something new.
    earlier : callable
        Returns the pictures that the panel holds besides: those of earlier turns.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        earlier: Callable[[], Sequence[ImageInput]] = lambda: (),
    ) -> None:
        self._changed = changed
        self._earlier = earlier
        self._lock = threading.RLock()
        self._ready: list[Picture] = []
        self._opening: dict[str, Opening] = {}
        self._opened_now: tuple[str, CancelToken] | None = None
        self._problems: OrderedDict[str, str] = OrderedDict()
        self._forgotten = 0
        self._numbers = itertools.count(1)
        self._waiting: OrderedDict[str, tuple[str, str, Any]] = OrderedDict()
        self._working = False

    @property
    def ready(self) -> tuple[Picture, ...]:
        """The pictures, in order."""
        with self._lock:
            return tuple(self._ready)

    @property
    def opening(self) -> list[Opening]:
        """Those on their way."""
        with self._lock:
            return list(self._opening.values())

    @property
    def problems(self) -> dict[str, str]:
        """What went wrong: an id and one line for each, the newest `MOST_PROBLEMS` of them."""
        with self._lock:
            if not self._forgotten:
                return dict(self._problems)
            return {_MORE: f"… and {self._forgotten} more before these.", **self._problems}

    def announce(self, opening: Opening) -> None:
        """Show a picture that is still arriving."""
        with self._lock:
            if opening.id in self._opening or len(self._opening) < MAX_IMAGES:
                self._opening[opening.id] = replace(opening, name=short_label(opening.name))
        self._changed()

    def open(self, value: Any, name: str, word: str = "", *, as_id: str = "") -> None:
        """Open what a value holds; returns at once.

        Parameters
        ----------
        value : object
            Anything that `images.open_images` takes.
        name : str
            What to call it.
        word : str
            What a ``%%vision`` line would say for it.
        as_id : str
            Id under which it was announced.
        """
        name = short_label(name)
        with self._lock:
            key = as_id or f"p{next(self._numbers)}"
            why = self._why_not(key, name, value)
            if not why:
                self._opening[key] = Opening(key, name)
                self._waiting[key] = (name, word, value)
                if not self._working:
                    self._working = True
                    threading.Thread(target=self._work, name="mlx-magic-open", daemon=True).start()
        if why:
            self.fail(key, why)
            return
        self._changed()

    def _why_not(self, key: str, name: str, value: Any) -> str:
        """Say why a value cannot wait to be opened; ``""`` if it can."""
        if len(self._ready) + len({*self._opening, key}) > MAX_IMAGES:
            return f"{name}: a question takes at most {MAX_IMAGES} pictures; remove some first."
        waiting = [found for _, _, found in self._waiting.values()]
        size = sum(len(found) for found in [*waiting, value] if isinstance(found, bytes))
        if size > MOST_WAITING:
            return (
                f"{name}: with it {amount(size)} of files would wait to be opened, the limit "
                f"is {amount(MOST_WAITING)}; add it again once the others are open."
            )
        return ""

    def put(self, pictures: Iterable[Picture]) -> None:
        """Have exactly these, as an earlier question had them."""
        with self._lock:
            self._ready = list(pictures)
        self._changed()

    def fail(self, key: str, text: str) -> None:
        """Say what went wrong with a picture that was announced."""
        with self._lock:
            self._forget(key)
            if not 0 < len(key) <= _LONGEST_ID or key == _MORE:
                key = f"e{next(self._numbers)}"
            self._problems.pop(key, None)
            self._problems[key] = short_label(text, _LONGEST_PROBLEM)
            while len(self._problems) > MOST_PROBLEMS:
                self._problems.popitem(last=False)
                self._forgotten += 1
        self._changed()

    def remove(self, key: str) -> None:
        """Take a picture out, or stop to wait for it."""
        with self._lock:
            self._ready = [picture for picture in self._ready if picture.id != key]
            self._forget(key)
            self._stop_opening(key)
        self._changed()

    def dismiss(self, key: str) -> None:
        """Forget what went wrong."""
        with self._lock:
            self._problems.pop(key, None)
            if key == _MORE or not self._problems:
                self._forgotten = 0
        self._changed()

    def order(self, keys: Iterable[str]) -> None:
        """Put the pictures in this order; those that are not named stay at the end."""
        with self._lock:
            place = {key: at for at, key in enumerate(keys)}
            self._ready.sort(key=lambda picture: place.get(picture.id, len(place)))
        self._changed()

    def clear(self) -> None:
        """Take everything out."""
        with self._lock:
            self._ready.clear()
            self._opening.clear()
            self._waiting.clear()
            self._problems.clear()
            self._forgotten = 0
            self._stop_opening()
        self._changed()

    def _forget(self, key: str) -> None:
        self._opening.pop(key, None)
        self._waiting.pop(key, None)

    def _stop_opening(self, key: str | None = None) -> None:
        """Stop the work on a picture that is being opened, or on whichever is; under the lock."""
        if self._opened_now is not None and key in (None, self._opened_now[0]):
            self._opened_now[1].cancel()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._working = False
                    return
                key, (name, word, value) = self._waiting.popitem(last=False)
            self._open(key, name, word, value)
            # Not while the next one is waited for.
            del value

    def _open(self, key: str, name: str, word: str, value: Any) -> None:
        token = CancelToken()
        with self._lock:
            if key not in self._opening:
                return
            self._opened_now = key, token
        try:
            if isinstance(value, bytes):
                self._require_room(name, pixels_of(value))  # before so many are unpacked
            opened = images_opening.open_images(value, name=name, cancel=token)
            for image in opened:
                image.thumbnail(THUMBNAIL_SIDE)
            with self._lock:
                if key not in self._opening:
                    return
                if len(self._ready) + len(opened) > MAX_IMAGES:
                    raise RequestError(
                        f"{name}: a question takes at most {MAX_IMAGES} pictures; "
                        "remove some first.",
                        option="images",
                    )
                known = [*(picture.image for picture in self._ready), *self._earlier()]
                opened = pixel_budget.shared(opened, known)
                self._require_room(name, pixel_budget.added(opened, known))
                words = _words(word, value, len(opened))
                self._ready += [
                    Picture(self._free(f"{key}.{at}" if at else key), image, words[at])
                    for at, image in enumerate(opened)
                ]
                del self._opening[key]
        except Cancelled:  # taken out meanwhile
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
            ready = [picture.image for picture in self._ready]
            pixel_budget.require_room(name, new, ready, self._earlier())

    def _free(self, key: str) -> str:
        """Return an id that no picture has: the page chooses those of files."""
        taken = {picture.id for picture in self._ready}
        while key in taken:
            key = f"p{next(self._numbers)}"
        return key


def _words(word: str, value: Any, count: int) -> list[str]:
    """Return what a ``%%vision`` line would say for each picture of a value."""
    if count == 1 or not word:
        return [word] * count
    if isinstance(value, (list, tuple)) and len(value) == count and word.isidentifier():
        return [f"{word}[{at}]" for at in range(count)]
    return [""] * count


def picture_state(picture: Picture, seen: str = "") -> dict[str, Any]:
    """Return what the page shows of a picture."""
    image = picture.image
    thumbnail = image.thumbnail(THUMBNAIL_SIDE)
    data = b64encode(thumbnail.data).decode("ascii")
    return {
        "id": picture.id,
        "name": to_plain(picture.name),
        "width": image.size[0],
        "height": image.size[1],
        "note": to_plain(image.note or ""),
        "seen": seen,
        "thumb": f"data:{thumbnail.mime};base64,{data}",
    }
