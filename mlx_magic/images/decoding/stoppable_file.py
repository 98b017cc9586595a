"""Stops decoding at a time limit or a cancel: Pillow reads from a file that checks both."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import ImageDecodeError

DECODE_SECONDS = 10.0
"""Maximum CPU time of one image. Not wall-clock time, which depends on the load of the machine."""

# An image has at most 65 thousand rows, each of which may be a strip of a TIFF.
_READS = 100_000
_READS_AT_MOST = 500_000
_BYTES_A_READ = 64
# A check costs about as much as a small read: of small reads, only one in 64 is checked.
_CHECK_EVERY = 64
_CHECK_BYTES = 4_096


class DecodeDeadline:
    """The time limit and cancel token of decoding one image; used on one thread only.

    Parameters
    ----------
    label : str
        The name given by the user.
    cancel : CancelToken, optional
    clock : callable
        CPU time of this thread in seconds.
    seconds : float
        Maximum CPU time.
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
        """Raise if decoding was cancelled or has used up its time.

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
                    "again, as a PNG or a plain JPEG.",
                    source=self.label,
                )
            )

    def stop(self, why: Exception) -> None:
        """Raise `why`, and keep it: a library may replace it by another exception."""
        self._stop = why
        raise why

    def reraise(self) -> None:
        """Raise the exception that stopped the decoding, if there was one."""
        if self._stop is not None:
            raise self._stop


class WatchedBytes(io.BytesIO):
    """An image file in memory whose reads are cancellation points.

    Parameters
    ----------
    data : bytes
        Not copied.
    watch : DecodeDeadline
    small_reads : bool
        Whether the format is read byte by byte, so that many reads are not suspicious.
    """

    def __init__(self, data: bytes, watch: DecodeDeadline, *, small_reads: bool = False) -> None:
        super().__init__(data)
        self._watch = watch
        self._reads = 0
        self._allowed = (
            len(data) + _READS
            if small_reads
            else min(_READS + len(data) // _BYTES_A_READ, _READS_AT_MOST)
        )

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, after checking the time limit and the token."""
        self._reads += 1
        if size is None or not 0 <= size <= _CHECK_BYTES or self._reads % _CHECK_EVERY == 0:
            self._watch.checkpoint()
            if self._reads > self._allowed:
                label = self._watch.label
                self._watch.stop(
                    ImageDecodeError(
                        f"{label} is made of too many small pieces: save it again.",
                        source=label,
                    )
                )
        return super().read(size)
