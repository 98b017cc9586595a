"""Files that the page sends in pieces: put together again, and held within limits."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.errors import ImageError, ImageTooLargeError
from mlx_magic.formatting import amount, short_label
from mlx_magic.images.limits import MAX_FILE_BYTES, MAX_IMAGES

PIECE_BYTES = 512 * 1024
"""Largest piece."""

PATIENCE = 60.0
"""Seconds without a piece after which a file no longer counts as on its way."""

_MOST_PIECES = 1_024
_LONGEST_ID = 200
_REFUSED_KEPT = 256


@dataclass(slots=True)
class _Upload:
    """A file on its way."""

    name: str
    size: int
    pieces: int
    seen: float
    got: dict[int, bytes] = field(default_factory=dict)
    received: int = 0

    def declares(self, other: _Upload) -> bool:
        return (self.name, self.size, self.pieces) == (other.name, other.size, other.pieces)


class Uploads:
    """Files on their way, each under an id that the page gave it.

    Nothing that the page says is believed: a file takes no more memory than it declared, and
    all of them together no more than `max_total`. A file whose pieces contradict each other is
    dropped with one error; what still arrives of it is ignored, until its first piece comes
    again. Not safe for several threads: the kernel's loop feeds it.

    Parameters
    ----------
    max_bytes : int
        Largest file.
    max_files : int
        Files on their way at once.
    max_total : int
        Their sizes together, in bytes.
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
        """Ids of the files that are not complete, in the order they began."""
        return list(self._uploads)

    @property
    def held(self) -> int:
        """Bytes of pieces that are held now."""
        return sum(upload.received for upload in self._uploads.values())

    def fraction(self, key: str) -> float:
        """Return how much of a file has arrived, from 0 to 1; 0 for an unknown one."""
        upload = self._uploads.get(key)
        return upload.received / upload.size if upload is not None else 0.0

    def drop(self, key: str) -> None:
        """Forget a file; what still arrives of it is ignored."""
        if self._uploads.pop(key, None) is not None:
            self._refuse(key)

    def take(
        self, message: Mapping[str, Any], piece: bytes | bytearray | memoryview
    ) -> bytes | None:
        """Take a piece of a file, in any order.

        The first piece (number 0) of a file that has it already, or that was dropped, begins
        the file anew.

        Parameters
        ----------
        message : mapping
            "id", "name", "size" (bytes of the whole file), "piece" (from 0), "pieces".
        piece : bytes-like

        Returns
        -------
        bytes or None
            The whole file once this was its last piece.

        Raises
        ------
        ImageError
            If the message or the piece cannot be right, or too many files are on their way.
        ImageTooLargeError
            If the file, or all of them together, would be over a limit.
        """
        key = _key(message)
        number = message.get("piece")
        if key in self._refused and number != 0:
            return None
        try:
            return self._taken(key, message, number, piece)
        except ImageError:
            self._uploads.pop(key, None)
            self._refuse(key)
            raise

    def _taken(self, key: str, message: Mapping[str, Any], number: Any, piece: Any) -> bytes | None:
        told = self._declared(message)
        if not _whole(number) or not 0 <= number < told.pieces:
            raise _contradiction(told.name)
        upload = self._uploads.get(key)
        if upload is None or (number == 0 and (0 in upload.got or not upload.declares(told))):
            upload = self._begin(key, told)
        if not upload.declares(told) or number in upload.got:
            raise _contradiction(told.name)
        size = memoryview(piece).nbytes
        missing = upload.pieces - len(upload.got) - 1
        left = upload.size - upload.received - size
        # Every piece has a byte at least; the last one has exactly what is left.
        if not 0 < size <= PIECE_BYTES or left < missing or (missing == 0 and left != 0):
            raise _contradiction(told.name)
        # A copy: a view would keep the whole message alive.
        upload.got[number] = bytes(piece)
        upload.received += size
        upload.seen = self._clock()
        if missing:
            return None
        del self._uploads[key]
        return b"".join(upload.got[at] for at in range(upload.pieces))

    def _declared(self, message: Mapping[str, Any]) -> _Upload:
        name: Any = message.get("name")
        size: Any = message.get("size")
        pieces: Any = message.get("pieces")
        label = short_label(name) if isinstance(name, str) and name.strip() else "picture"
        if not _whole(size) or size < 0 or not _whole(pieces) or pieces < 1:
            raise _contradiction(label)
        if size == 0:
            raise ImageError(f"{label} is an empty file.", source=label)
        self._check_size(label, size)
        if pieces > min(size, self._most_pieces):
            raise _contradiction(label)
        return _Upload(label, size, pieces, self._clock())

    def _check_size(self, label: str, size: int) -> None:
        if size > self._max_bytes:
            raise ImageTooLargeError(
                f"{label} has {amount(size)}; the limit is {amount(self._max_bytes)}.",
                source=label,
                size=size,
                limit=self._max_bytes,
            )

    def _begin(self, key: str, told: _Upload) -> _Upload:
        self._uploads.pop(key, None)
        self._refused.pop(key, None)
        now = self._clock()
        for stale in [k for k, up in self._uploads.items() if now - up.seen > PATIENCE]:
            self.drop(stale)
        if len(self._uploads) >= self._max_files:
            raise ImageError(
                f"{told.name}: {len(self._uploads)} files are on their way already; "
                "add it once they are there.",
                source=told.name,
            )
        total = told.size + sum(upload.size for upload in self._uploads.values())
        if total > self._max_total:
            raise ImageTooLargeError(
                f"{told.name}: with it {amount(total)} would be on their way, the limit is "
                f"{amount(self._max_total)}; add it once the others are there.",
                source=told.name,
                size=total,
                limit=self._max_total,
            )
        self._uploads[key] = told
        return told

    def _refuse(self, key: str) -> None:
        self._refused[key] = None
        while len(self._refused) > _REFUSED_KEPT:
            self._refused.popitem(last=False)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _key(message: Mapping[str, Any]) -> str:
    key = message.get("id")
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_ID:
        raise ImageError("A picture arrived without an id: add it again.", source="picture")
    return key


def _contradiction(label: str) -> ImageError:
    return ImageError(f"{label} did not arrive whole: add it again.", source=label)
