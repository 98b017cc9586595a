"""Reading of large arrays in parts, so that slices of a load stay short."""

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
"""Bytes from which an array is read in parts."""

PART = 2**26
"""Bytes per part; at least one row."""

PIECE = 2**22
"""Minimum bytes per thread."""

READERS = 4
"""Threads that read a part; as many as mlx has for an array of more than 32 MB."""


class Origins:
    """Where the large arrays of a checkpoint are on disk.

    On CUDA mlx reads an array when it is evaluated: on the calling thread, in one piece, and
    without further threads up to 32 MB (its ``load.cpp``). All other requests wait meanwhile.
    mlx can read a part of a file, but neither mlx-vlm nor mlx-lm tells which array of the file a
    parameter is. So the arrays that they read are recorded while they open a checkpoint. A
    parameter that is such an array is read in parts here; a parameter computed from one is read
    by mlx. (An array changed in place would be mistaken for the file's. Neither library does
    that to weights.)
    """

    def __init__(self) -> None:
        # Holding the arrays keeps their ids valid. The files stay open, since they may be replaced
        # on disk during the load.
        self._held: dict[int, tuple[Any, Span]] = {}
        self._files: dict[Path, BinaryIO] = {}

    @contextlib.contextmanager
    def recording(self, library: Any) -> Iterator[None]:
        """Record what a library reads within this block; on the inference thread.

        Parameters
        ----------
        library : module
            A module that calls ``mx.load``. Nothing is recorded if mlx reads on its own threads.
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
        """Record a file's large arrays."""
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
        """Return where an array is on disk; None if it is not a recorded one."""
        return self._held.get(id(array), (None, None))[1]

    def drop(self) -> None:
        """Release the arrays, once the parameters among them are known."""
        self._held.clear()

    def forget(self) -> None:
        """Release arrays and files, after the load or its failure."""
        self.drop()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def read(self, wanted: Mapping[str, Span]) -> Generator[int, None, dict[str, Any]]:
        """Read arrays in parts; on the inference thread.

        Parameters
        ----------
        wanted : mapping
            Name to span; see `of`.

        Yields
        ------
        int
            Bytes read: `PART` or somewhat more. Joining the parts of an array takes its bytes
            once more for a moment. So the largest arrays are read first, before the memory of
            the others is taken.

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
    """Proxy of ``mlx.core`` that records what `load` returns."""

    def __init__(self, real: Any, origins: Origins) -> None:
        super().__init__(real)
        self._origins = origins

    def load(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as MLX does, and record the arrays."""
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
        # MLX evaluates arrays from a file object at once.
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
    """A virtual safetensors file with some rows of an array in another file."""

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
        """Return the read position."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the read position, relative to the beginning (0), to itself (1) or to the end (2)."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer; return the number of bytes read."""
        view = memoryview(buffer).cast("B")
        head = self._head[self._at : self._at + len(view)]
        view[: len(head)] = head
        rest, start = view[len(head) :], self._start + self._at + len(head) - len(self._head)
        # One piece per thread: between two pieces a thread waits for Python's lock, which a
        # tokenizer that loads meanwhile holds for tens of milliseconds at a time.
        piece = max(-(-len(rest) // READERS), PIECE)
        pieces = range(0, len(rest), piece)
        done = len(head) + sum(
            self._readers.map(lambda at: self._fill(rest[at : at + piece], start + at), pieces)
        )
        self._at += done
        return done

    def _fill(self, view: memoryview, start: int) -> int:
        """Read from an offset of the file until the buffer is full or the file ends."""
        done = 0
        while done < len(view):
            count = os.preadv(self._file, [view[done:]], start + done)
            if not count:
                break
            done += count
        return done
