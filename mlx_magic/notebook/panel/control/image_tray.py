"""The page's image tray: uploads in pieces, and the images of the next question."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.errors import ImageError, ImageTooLargeError, MlxMagicError
from mlx_magic.formatting import amount, short_label
from mlx_magic.images.limits import MAX_FILE_BYTES, MAX_IMAGES, check_bytes
from mlx_magic.notebook.panel.control.question_images import Opening, QuestionImages, image_state
from mlx_magic.notebook.panel.widgets.controls import Guarded, set_trait
from mlx_magic.notebook.panel.widgets.front import ImageTray

PIECE_BYTES = 512 * 1024
"""Maximum size of a piece."""

PATIENCE = 60.0
"""Seconds without a piece after which an upload is dropped."""

_MOST_PIECES = 1_024
_LONGEST_ID = 200
_REFUSED_KEPT = 256


@dataclass(slots=True)
class _Upload:
    """A file that is being received."""

    name: str
    size: int
    pieces: int
    seen: float
    pieces_received: dict[int, bytes] = field(default_factory=dict)
    received: int = 0

    def declares(self, other: _Upload) -> bool:
        return (self.name, self.size, self.pieces) == (other.name, other.size, other.pieces)


class Uploads:
    """Files that are being received, each under an id chosen by the page.

    The page is not trusted: a file takes no more memory than it declared, and all files together
    no more than `max_total`. A file with inconsistent pieces is dropped with one error; its
    later pieces are ignored until its first piece is sent again. Not thread-safe: only the
    kernel's event loop calls it.

    Parameters
    ----------
    max_bytes : int
        Maximum size of a file.
    max_files : int
        Maximum number of files at once.
    max_total : int
        Maximum total size of these files, in bytes.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self,
        *,
        max_bytes: int = MAX_FILE_BYTES,
        max_files: int = MAX_IMAGES,
        max_total: int = 2 * MAX_FILE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._max_total = max_total
        self._clock = clock
        self._most_pieces = max(_MOST_PIECES, 2 * (max_bytes // PIECE_BYTES + 1))
        self._uploads: dict[str, _Upload] = {}
        self._refused: OrderedDict[str, None] = OrderedDict()

    @property
    def in_flight(self) -> list[str]:
        """Ids of incomplete files, oldest first."""
        return list(self._uploads)

    @property
    def held(self) -> int:
        """Bytes of the received pieces."""
        return sum(upload.received for upload in self._uploads.values())

    def fraction(self, key: str) -> float:
        """Return the received part of a file, from 0 to 1; 0 for an unknown id."""
        upload = self._uploads.get(key)
        return upload.received / upload.size if upload is not None else 0.0

    def drop(self, key: str) -> None:
        """Drop a file; its later pieces are ignored."""
        if self._uploads.pop(key, None) is not None:
            self._refuse(key)

    def take(
        self, message: Mapping[str, Any], piece: bytes | bytearray | memoryview
    ) -> bytes | None:
        """Receive a piece of a file; pieces may come in any order.

        If piece 0 arrives again, or arrives for a dropped file, the upload restarts.

        Parameters
        ----------
        message : mapping
            "id", "name", "size" (bytes of the whole file), "piece" (from 0), "pieces".
        piece : bytes-like

        Returns
        -------
        bytes or None
            The whole file after its last piece, else None.

        Raises
        ------
        ImageError
            If the message or the piece is inconsistent, or there are too many files.
        ImageTooLargeError
            If the file, or all files together, exceed a limit.
        """
        key = _key(message)
        number = message.get("piece")
        if key in self._refused and number != 0:
            return None
        try:
            return self._add_piece(key, message, number, piece)
        except ImageError:
            self._uploads.pop(key, None)
            self._refuse(key)
            raise

    def _add_piece(
        self, key: str, message: Mapping[str, Any], number: Any, piece: Any
    ) -> bytes | None:
        declared = self._declared(message)
        if not _whole(number) or not 0 <= number < declared.pieces:
            raise _contradiction(declared.name)
        upload = self._uploads.get(key)
        if upload is None or (
            number == 0 and (0 in upload.pieces_received or not upload.declares(declared))
        ):
            upload = self._begin(key, declared)
        if not upload.declares(declared) or number in upload.pieces_received:
            raise _contradiction(declared.name)
        size = memoryview(piece).nbytes
        missing = upload.pieces - len(upload.pieces_received) - 1
        left = upload.size - upload.received - size
        # Each piece has at least one byte; the last one has exactly the rest.
        if not 0 < size <= PIECE_BYTES or left < missing or (missing == 0 and left != 0):
            raise _contradiction(declared.name)
        # A copy: a view would keep the whole message alive.
        upload.pieces_received[number] = bytes(piece)
        upload.received += size
        upload.seen = self._clock()
        if missing:
            return None
        del self._uploads[key]
        return b"".join(upload.pieces_received[at] for at in range(upload.pieces))

    def _declared(self, message: Mapping[str, Any]) -> _Upload:
        name: Any = message.get("name")
        size: Any = message.get("size")
        pieces: Any = message.get("pieces")
        label = short_label(name) if isinstance(name, str) and name.strip() else "image"
        if not _whole(size) or size < 0 or not _whole(pieces) or pieces < 1:
            raise _contradiction(label)
        if size == 0:
            raise ImageError(f"{label} is an empty file.", source=label)
        check_bytes(size, label, self._max_bytes)
        if pieces > min(size, self._most_pieces):
            raise _contradiction(label)
        return _Upload(label, size, pieces, self._clock())

    def _begin(self, key: str, declared: _Upload) -> _Upload:
        self._uploads.pop(key, None)
        self._refused.pop(key, None)
        now = self._clock()
        for stale in [k for k, up in self._uploads.items() if now - up.seen > PATIENCE]:
            self.drop(stale)
        if len(self._uploads) >= self._max_files:
            raise ImageError(
                f"{declared.name}: {len(self._uploads)} files are being received already; "
                "add it once they have arrived.",
                source=declared.name,
            )
        total = declared.size + sum(upload.size for upload in self._uploads.values())
        if total > self._max_total:
            raise ImageTooLargeError(
                f"{declared.name} was not added: {amount(total)} would be in transfer, the "
                f"limit is {amount(self._max_total)}; add it once the others have arrived.",
                source=declared.name,
                size=total,
                limit=self._max_total,
            )
        self._uploads[key] = declared
        return declared

    def _refuse(self, key: str) -> None:
        self._refused[key] = None
        while len(self._refused) > _REFUSED_KEPT:
            self._refused.popitem(last=False)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _key(message: Mapping[str, Any]) -> str:
    key = message.get("id")
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_ID:
        raise ImageError("An image arrived without an id: add it again.", source="image")
    return key


def _contradiction(label: str) -> ImageError:
    return ImageError(f"{label} was not received completely: add it again.", source=label)


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
