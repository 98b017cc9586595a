"""Decoding that can be stopped: Pillow reads from a file that looks at the clock and the token."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import ImageDecodeError

DECODE_SECONDS = 10.0
"""Processor time that one image may take. Not by the wall clock: a busy machine is no fault of
the image."""

# The highest image has 65 thousand rows, each of which may be a strip of a TIFF.
_READS = 100_000
_READS_AT_MOST = 500_000
_BYTES_A_READ = 64
# A look costs about as much as a small read, so that readers of single bytes get one in 64.
_CHECK_EVERY = 64
_CHECK_BYTES = 4_096


class Watch:
    """What may stop the work on one image. Belongs to the thread that makes it.

    Parameters
    ----------
    label : str
        How the person named the image.
    cancel : CancelToken, optional
    clock : callable
        Seconds of processor time of this thread.
    seconds : float
        How much of it is allowed.
    """

    def __init__(
        self,
        label: str,
        cancel: CancelToken | None = None,
        *,
        clock: Callable[[], float] = time.thread_time,
        seconds: float = DECODE_SECONDS,
    ) -> None:
        self.label = label
        self.cancel = cancel
        self._clock = clock
        self._seconds = seconds
        self._end = clock() + seconds
        self._stop: Exception | None = None

    def checkpoint(self) -> None:
        """Stop here if the person cancelled or the time is used up.

        Raises
        ------
        Cancelled
        ImageDecodeError
        """
        if self.cancel is not None and self.cancel.requested:
            self.stop(Cancelled())
        if self._clock() > self._end:
            self.stop(
                ImageDecodeError(
                    f"{self.label} takes more than {self._seconds:g} seconds to decode: save it "
                    "anew, as a PNG or a plain JPEG.",
                    source=self.label,
                )
            )

    def stop(self, why: Exception) -> None:
        """Raise `why`, and remember it: a library may turn it into an error of its own."""
        self._stop = why
        raise why

    def reraise(self) -> None:
        """Raise what the work was stopped for, if it was."""
        if self._stop is not None:
            raise self._stop


class WatchedBytes(io.BytesIO):
    """An image's file in memory, each read of which is a point to stop at.

    Parameters
    ----------
    data : bytes
        Not copied.
    watch : Watch
    small_reads : bool
        Whether the format is read byte by byte, so that many reads mean nothing.
    """

    def __init__(self, data: bytes, watch: Watch, *, small_reads: bool = False) -> None:
        super().__init__(data)
        self._watch = watch
        self._reads = 0
        self._allowed = (
            len(data) + _READS
            if small_reads
            else min(_READS + len(data) // _BYTES_A_READ, _READS_AT_MOST)
        )

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, after a look whether to go on."""
        self._reads += 1
        if size is None or not 0 <= size <= _CHECK_BYTES or self._reads % _CHECK_EVERY == 0:
            self._watch.checkpoint()
            if self._reads > self._allowed:
                label = self._watch.label
                self._watch.stop(
                    ImageDecodeError(
                        f"{label} is made of too many small pieces: save it anew.",
                        source=label,
                    )
                )
        return super().read(size)
