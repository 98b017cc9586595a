"""Pictures are made ready on each request's own thread, before its turn on the inference thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from mlx_magic.inference.backends.image_calls import Call, arrays, copied, nbytes

if TYPE_CHECKING:
    from mlx_magic.inference.cancel import CancelToken
    from mlx_magic.inference.image_input import ImageInput

LOOK = 0.02
"""Seconds between two looks at the cancel token by who waits for others."""

KNOWN = ("transformers", "mlx_vlm")
"""Packages whose image processors may work on another thread, if they leave MLX alone."""


class Ready:
    """What was made of a request's pictures; it is kept for as long as the request holds this.

    Parameters
    ----------
    size : int
        Bytes that it will take: what others took.

    Attributes
    ----------
    size : int
        Those, and what it does take once it is done.
    outputs : dict
        By the form of the call; empty until it is done, and where it failed.
    """

    __slots__ = ("__weakref__", "_done", "outputs", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.outputs: Mapping[Hashable, Any] = {}
        self._done = threading.Event()

    def settle(self, outputs: Mapping[Hashable, Any]) -> None:
        """Give what was made to all who wait for it."""
        self.outputs, self.size = outputs, sum(map(nbytes, outputs.values()))
        self._done.set()

    def wait(self, cancel: CancelToken) -> None:
        """Wait until it is done.

        Raises
        ------
        Cancelled
        """
        while not self._done.wait(LOOK):
            cancel.checkpoint()


class Ahead:
    """Calls an image processor as it was called last, with other pictures.

    To cut and scale a picture of 640x480 takes 10 ms of a processor's core, in which a GPU
    would have nothing to do and others would not be answered (H100, a 2 B model: a quarter of
    the time that 32 pictures took). How a model's processor calls its image processor is
    seen the first time; what is made ahead is used where the call turns out to be the same,
    and the processor is asked as ever where not. One that works with MLX's arrays, or that
    came with a checkpoint, is never asked ahead.

    Parameters
    ----------
    limit : int
        Bytes that may be made ahead, for all requests.
    threads : int
        How many may work at the same time.
    """

    def __init__(self, limit: int, threads: int) -> None:
        self._limit = limit
        self._slots = threading.Semaphore(threads)
        self._lock = threading.Lock()
        self._ready: WeakValueDictionary[Hashable, Ready] = WeakValueDictionary()
        self._original: Any = None
        # By the number of pictures: how it was called, and the bytes that it made.
        self._learnt: dict[int, tuple[list[Call], int]] = {}
        self._varies: set[int] = set()

    def outputs(self, key: Hashable) -> Mapping[Hashable, Any]:
        """Return what is ready of a request's pictures, by the form of the call."""
        ready = self._ready.get(key)
        return {} if ready is None else ready.outputs

    def learn(
        self, original: Any, count: int, calls: Sequence[Call | None], made: Mapping[Hashable, Any]
    ) -> None:
        """See how so many pictures are processed; on the inference thread.

        Parameters
        ----------
        original : callable
            The model's image processor.
        count : int
            Pictures of the request.
        calls : sequence of Call or None
            All that there were.
        made : mapping
            What they gave, by form; not all of it, if it was known before.
        """
        known = self._learnt.get(count)
        if known is not None:
            if [call and call.form for call in calls] != [call.form for call in known[0]]:
                # Its options follow the words, say: made ahead it would be made in vain.
                del self._learnt[count]
                self._varies.add(count)
            return
        repeatable = [call for call in calls if call is not None and call.order is not None]
        if count in self._varies or not calls or len(repeatable) < len(calls):
            return
        held = [made.get(call.form) for call in repeatable]
        if all(each is not None and _is_plain(each) for each in held) and _leaves_mlx_alone(
            original
        ):
            self._original = original
            self._learnt[count] = repeatable, sum(map(nbytes, held))

    def make(
        self, key: Hashable, images: Sequence[ImageInput], cancel: CancelToken
    ) -> Ready | None:
        """Make pictures ready, if it is known how; on the request's own thread.

        Returns
        -------
        Ready or None
            To be held until the request has ended.

        Raises
        ------
        Cancelled
            While it waits for others; not while the processor works.
        """
        learnt, original = self._learnt.get(len(images)), self._original
        if learnt is None:
            return None
        calls, size = learnt
        with self._lock:
            known = self._ready.get(key)
            if known is None:
                if self._taken() + size > self._limit:
                    return None
                ready = self._ready[key] = Ready(size)
        if known is not None:
            known.wait(cancel)
            return known
        try:
            while not self._slots.acquire(timeout=LOOK):
                cancel.checkpoint()
            try:
                # Some processors make more of a larger picture.
                if self._taken() <= self._limit:
                    ready.settle(_made(original, calls, [image.pixels for image in images]))
            finally:
                self._slots.release()
        finally:
            if not ready.outputs:
                ready.settle({})
                with self._lock:
                    self._ready.pop(key, None)
        return ready

    def clear(self) -> None:
        """Forget what is ready; requests that wait for their turn make it anew."""
        with self._lock:
            self._ready.clear()

    def _taken(self) -> int:
        return sum(ready.size for ready in list(self._ready.values()))


def _made(original: Any, calls: Sequence[Call], pixels: Sequence[Any]) -> dict[Hashable, Any]:
    found: dict[Hashable, Any] = {}
    try:
        for call in calls:
            output = copied(call.again(original, pixels))
            if not _is_plain(output):
                return {}
            found[call.form] = output
    except Exception:
        # On its turn it is asked once more, and what it says then is told to the person.
        return {}
    return found


def _is_plain(output: Any) -> bool:
    """Say whether an output has no arrays of MLX."""
    import mlx.core as mx

    return not any(isinstance(array, mx.array) for array in arrays(output))


def _leaves_mlx_alone(processor: Any) -> bool:
    """Say whether an image processor is known not to work with MLX: it must not, elsewhere."""
    named = [kind.__module__ for kind in type(processor).__mro__]
    own = [name for name in named if _package(name) not in sys.stdlib_module_names]
    return all(_package(name) in KNOWN and not _uses_mlx(sys.modules.get(name)) for name in own)


def _uses_mlx(module: ModuleType | None) -> bool:
    held = vars(module).values() if module is not None else ()
    return any(isinstance(each, ModuleType) and _package(each.__name__) == "mlx" for each in held)


def _package(module: str) -> str:
    return module.partition(".")[0]
