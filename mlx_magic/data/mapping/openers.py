"""Threads that open images ahead of their turn, within a limit of bytes."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.data.journal.store import FileState
from mlx_magic.data.mapping.rows import InputRow
from mlx_magic.errors import ImageError
from mlx_magic.formatting import reason
from mlx_magic.images.image import ImageInput
from mlx_magic.images.opening import TakenImages, take_images

AHEAD_BYTES = 256_000_000
"""Maximum bytes of pixels that are open before their turn. The image whose turn it is, and those
that are being opened at that moment, come on top."""

THREADS = max(1, min(4, (os.cpu_count() or 2) - 1))

_BYTES_A_PIXEL = 4  # of Pillow's RGB images


@dataclass(frozen=True, slots=True, eq=False)
class OpenedImage:
    """An image of a row, or why there is none.

    Attributes
    ----------
    number : int
        Of the row.
    image : ImageInput or None
    error : Exception or None
    file : FileState or None
        State of its file, if that did not change while it was read.
    """

    number: int
    image: ImageInput | None = None
    error: Exception | None = None
    file: FileState | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return 0 if self.image is None else _BYTES_A_PIXEL * self.image.size[0] * self.image.size[1]


class Openers:
    """Opens images on a few threads.

    Parameters
    ----------
    max_pixels, normalize
        See `take_images`.
    cancel : CancelToken
    opened : callable
        Takes each `OpenedImage`, on any thread.
    """

    def __init__(
        self,
        max_pixels: int | None,
        normalize: bool,
        cancel: CancelToken,
        opened: Callable[[OpenedImage], None],
    ) -> None:
        self._options = max_pixels, normalize
        self._cancel = cancel
        self._opened = opened
        self._queue: queue.SimpleQueue[tuple[int, InputRow, TakenImages | None] | None]
        self._queue = queue.SimpleQueue()
        self._threads = 0
        self.busy = 0
        """Images that are being opened, or wait for it; changed by the map's thread alone."""

    def submit(self, number: int, row: InputRow, taken: TakenImages | None) -> None:
        """Open the image of a row soon."""
        self.busy += 1
        self._queue.put((number, row, taken))
        if self._threads < min(self.busy, THREADS):
            self._threads += 1
            threading.Thread(target=self._work, name="mlx-magic-map-open", daemon=True).start()

    def close(self) -> None:
        """End the threads, after the images that were submitted."""
        for _ in range(self._threads):
            self._queue.put(None)
        self._threads = 0

    def take(self, row: InputRow) -> TakenImages:
        """Take an image as it is now, on the thread that calls.

        Raises
        ------
        ImageError
        """
        max_pixels, normalize = self._options
        return take_images(
            [(row.source, row.value)],
            max_pixels=max_pixels,
            normalize=normalize,
            cancel=self._cancel,
        )

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            number, row, taken = job
            del job
            self._opened(self._open(number, row, taken))
            del row, taken

    def _open(self, number: int, row: InputRow, taken: TakenImages | None) -> OpenedImage:
        try:
            self._cancel.checkpoint()
            before = None if row.path is None else _state(row)
            found = (taken or self.take(row)).open(self._cancel)
            if len(found) != 1:
                raise ImageError(
                    f"{row.source} has {len(found)} images: give them one by one.",
                    source=row.source,
                )
            image = found[0]
            _ = image.pixels
            same = before is not None and before == _state(row)
            return OpenedImage(number, image, None, before if same else None)
        except (Cancelled, ImageError) as error:
            return OpenedImage(number, error=error)
        except MemoryError:
            failed = ImageError(f"{row.source} does not fit into memory.", source=row.source)
            return OpenedImage(number, error=failed)
        # Foreign code: methods of the value.
        except Exception as error:
            failed = ImageError(f"{row.source} cannot be read: {reason(error)}.", source=row.source)
            return OpenedImage(number, error=failed)


def _state(row: InputRow) -> FileState | None:
    try:
        return None if row.path is None else FileState.of(row.path)
    except OSError:
        return None
