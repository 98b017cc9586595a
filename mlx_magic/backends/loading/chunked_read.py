"""Reading an array that is larger than a slice of a load should be, in parts."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from mlx_magic.backends.device import platform
from mlx_magic.backends.proxy import Proxy
from mlx_magic.models.checkpoints.safetensors import Span, spans

LARGE = 2**24
"""Bytes from which an array is read here."""

PART = 2**26
"""Bytes of a part, or one row where that is more."""

PIECE = 2**22
"""Bytes that one thread reads, at the least."""

READERS = 4
"""Threads that read a part; as many as mlx has for an array of more than 32 MB."""


class Origins:
    """Where the large arrays of a checkpoint lie on disk.

    On CUDA mlx reads an array where it evaluates it: on the calling thread, in one piece, and
    up to 32 MB with no other thread's help (its ``load.cpp``). Who answers beside it waits. It
    can be given a part of a file, but neither mlx-vlm nor mlx-lm says which of the file's
    arrays a parameter is. So what they read is noted while they open a checkpoint; a parameter
    that still is such an array is read in parts, and one made of it as mlx does it. (One that
    was changed in place would be taken for the file's. Neither library does that to weights.)
    """

    def __init__(self) -> None:
        # The arrays are held: their ids are theirs as long as they live. So are the files,
        # which somebody may replace meanwhile.
        self._held: dict[int, tuple[Any, Span]] = {}
        self._files: dict[Path, BinaryIO] = {}

    @contextlib.contextmanager
    def noted(self, library: Any) -> Iterator[None]:
        """Note what a library reads; on the inference thread.

        Parameters
        ----------
        library : module
            It calls ``mx.load``. Nothing is noted where mlx reads on threads of its own.
        """
        if not platform.reads_where_it_evaluates():
            yield
            return
        real = library.mx
        library.mx = _RecordingMlx(real, self)
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
            self._files[path] = path.open("rb", buffering=0)
            located = spans(path)
            for key, array in large.items():
                self._held[id(array)] = (array, located[key])

    def of(self, array: Any) -> Span | None:
        """Return where an array lies on disk; None if it is none of the large ones."""
        return self._held.get(id(array), (None, None))[1]

    def drop(self) -> None:
        """Let go of the arrays; once it is known which of them the parameters are."""
        self._held.clear()

    def forget(self) -> None:
        """Let go of arrays and files; once the weights are read, or will not be."""
        self.drop()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def read(self, wanted: Mapping[str, Span]) -> Generator[int, None, dict[str, Any]]:
        """Read arrays in parts; on the inference thread.

        Parameters
        ----------
        wanted : mapping
            Name to place; see `of`.

        Yields
        ------
        int
            Bytes that were read: `PART` or somewhat more. Parts of one array are joined after
            its last, which takes its bytes once more for a moment: the largest are read first,
            while there is room for the others yet.

        Returns
        -------
        dict
            Name to array, evaluated.
        """
        found: dict[str, Any] = {}
        fresh = 0
        with ThreadPoolExecutor(READERS, "mlx-magic-reader") as readers:
            largest = sorted(wanted.items(), key=lambda item: item[1].nbytes, reverse=True)
            for name, span in largest:
                parts: list[Any] = []
                for part in _parts(self._files[span.path], span, readers):
                    parts.append(part)
                    fresh += part.nbytes
                    if fresh >= PART:
                        yield fresh
                        fresh = 0
                found[name] = _joined(parts)
        if fresh:
            yield fresh
        return found


class _RecordingMlx(Proxy):
    """Stands in front of ``mlx.core``; in all but `load` it is that."""

    def __init__(self, real: Any, origins: Origins) -> None:
        super().__init__(real)
        self._origins = origins

    def load(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as MLX does, and take note."""
        loaded = self._part.load(file, *args, **kwargs)
        self._origins.note(file, loaded)
        return loaded


def _parts(file: BinaryIO, span: Span, readers: ThreadPoolExecutor) -> Iterator[Any]:
    import mlx.core as mx

    count = span.shape[0]
    row = span.nbytes // count
    step = max(PART // row, 1)
    for at in range(0, count, step):
        part: Any = _Part(file.fileno(), readers, span, at * row, min(step, count - at))
        # What comes from a file object is evaluated at once.
        loaded: Any = mx.load(part, format="safetensors")
        yield loaded.pop("part")


def _joined(parts: list[Any]) -> Any:
    import mlx.core as mx

    if len(parts) == 1:
        return parts[0]
    whole = mx.concatenate(parts)
    mx.eval(whole)
    return whole


class _Part:
    """A safetensors file, as it looks to a reader, with some rows of an array in another one."""

    def __init__(
        self, file: int, readers: ThreadPoolExecutor, span: Span, start: int, rows: int
    ) -> None:
        nbytes = span.nbytes // span.shape[0] * rows
        shape = (rows, *span.shape[1:])
        entry = {"dtype": span.dtype, "shape": shape, "data_offsets": (0, nbytes)}
        header = json.dumps({"part": entry}).encode("ascii")
        self._head = len(header).to_bytes(8, "little") + header
        self._file = file
        self._readers = readers
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
        head = self._head[self._at : self._at + len(view)]
        view[: len(head)] = head
        rest, start = view[len(head) :], self._start + self._at + len(head) - len(self._head)
        # One for each: between two of them a thread waits for Python's lock, and a tokenizer
        # that is read meanwhile holds it for tens of milliseconds at a time.
        piece = max(-(-len(rest) // READERS), PIECE)
        pieces = range(0, len(rest), piece)
        done = len(head) + sum(
            self._readers.map(lambda at: self._fill(rest[at : at + piece], start + at), pieces)
        )
        self._at += done
        return done

    def _fill(self, view: memoryview, start: int) -> int:
        """Read from a place of the file until a buffer is full, or the file at its end."""
        done = 0
        while done < len(view):
            count = os.preadv(self._file, [view[done:]], start + done)
            if not count:
                break
            done += count
        return done
