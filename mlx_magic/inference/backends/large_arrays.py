"""Reading an array that is larger than a slice of a load should be, in parts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from mlx_magic.inference.backends import device
from mlx_magic.inference.safetensors_header import Span, spans

LARGE = 2**27
"""Bytes from which an array is read in parts."""

PART = 2**26
"""Bytes of a part, or one row where that is more."""


class Origins:
    """Where the large arrays of a checkpoint lie on disk.

    On CUDA mlx reads an array where it evaluates it, on the calling thread, and in one piece:
    200 MB stopped an answer beside them for a quarter of a second (H100, mlx 0.32.4). Its own
    reader can be given a part of a file, but neither mlx-vlm nor mlx-lm says which of the
    file's arrays a parameter is. So what they read is noted while they open a checkpoint; a
    parameter that still is such an array is read in parts, and one that they have changed as
    mlx does it.
    """

    def __init__(self) -> None:
        # The arrays are held: their ids are theirs as long as they live.
        self._held: dict[int, tuple[Any, Span]] = {}

    @contextlib.contextmanager
    def noted(self, library: Any) -> Iterator[None]:
        """Note what a library reads; on the inference thread.

        Parameters
        ----------
        library : module
            It calls ``mx.load``. Nothing is noted where mlx reads on threads of its own.
        """
        if not device.reads_where_it_evaluates():
            yield
            return
        real = library.mx
        library.mx = _Noting(real, self)
        try:
            yield
        finally:
            library.mx = real

    def note(self, file: Any, arrays: Any) -> None:
        """Note which of a file's arrays are large."""
        path = Path(str(file))
        if not isinstance(arrays, dict) or path.suffix != ".safetensors":
            return
        large = {key: array for key, array in arrays.items() if array.nbytes >= LARGE}
        if large:
            lies = spans(path)
            for key, array in large.items():
                self._held[id(array)] = (array, lies[key])

    def of(self, array: Any) -> Span | None:
        """Return where an array lies on disk; None if it is none of the large ones."""
        return self._held.get(id(array), (None, None))[1]

    def forget(self) -> None:
        """Let go of the arrays; once the weights are read."""
        self._held.clear()


class _Noting:
    """Stands in front of ``mlx.core``; in all but `load` it is that."""

    def __init__(self, real: Any, origins: Origins) -> None:
        self._real = real
        self._origins = origins

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def load(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as MLX does, and take note."""
        loaded = self._real.load(file, *args, **kwargs)
        self._origins.note(file, loaded)
        return loaded


def read(span: Span) -> Generator[int, None, Any]:
    """Read an array in parts; on the inference thread.

    Parameters
    ----------
    span : Span

    Yields
    ------
    int
        Bytes of the part that was read; its rows are joined after the last, which takes the
        array's bytes once more for a moment.

    Returns
    -------
    array
        Evaluated.
    """
    import mlx.core as mx

    count = span.shape[0]
    row = span.nbytes // count
    step = max(PART // row, 1)
    parts: list[Any] = []
    with span.path.open("rb", buffering=0) as file:
        for at in range(0, count, step):
            rows = min(step, count - at)
            part: Any = _Part(file, span, at * row, (rows, *span.shape[1:]))
            loaded: Any = mx.load(part, format="safetensors")
            parts.append(loaded["part"])
            mx.eval(parts[-1])
            yield rows * row
    whole = mx.concatenate(parts)
    mx.eval(whole)
    return whole


class _Part:
    """A safetensors file, as it looks to a reader, with some rows of an array in another one."""

    def __init__(self, file: Any, span: Span, start: int, shape: tuple[int, ...]) -> None:
        nbytes = span.nbytes // span.shape[0] * shape[0]
        entry = {"dtype": span.dtype, "shape": shape, "data_offsets": (0, nbytes)}
        header = json.dumps({"part": entry}).encode("ascii")
        self._head = len(header).to_bytes(8, "little") + header
        self._file = file
        self._start = span.start + start
        self._size = len(self._head) + nbytes
        self._at = 0
        self.closed = False

    def tell(self) -> int:
        """Return the place that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, from the beginning (0), from here (1) or from the end (2)."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer; return how many bytes there were for it."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            count = self._some(view[done:])
            if not count:
                break
            done += count
            self._at += count
        return done

    def _some(self, view: memoryview) -> int:
        if self._at < len(self._head):
            found = self._head[self._at : self._at + len(view)]
            view[: len(found)] = found
            return len(found)
        self._file.seek(self._start + self._at - len(self._head))
        return int(self._file.readinto(view))
