"""Pictures are made ready on each request's own thread, before its turn on the inference thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlx_magic.backends.chat_templates import chat_messages
from mlx_magic.backends.device import platform
from mlx_magic.backends.vision.image_cache.processor_call import Call, arrays, held_nbytes
from mlx_magic.backends.vision.image_cache.thread_safety import is_mlx_free
from mlx_magic.cancellation import Cancelled

if TYPE_CHECKING:
    from mlx_magic.cancellation import CancelToken
    from mlx_magic.engine.request import GenerationRequest
    from mlx_magic.images.image import ImageInput

SLOTS = threading.Semaphore(platform.helpers())
"""Of all models: those who come first work first."""

_NOTHING: Mapping[Hashable, Any] = {}


class Prefetched:
    """What was made of a request's pictures; the request holds it until it has ended.

    Parameters
    ----------
    size : int
        Bytes that it will take: what others took.

    Attributes
    ----------
    size : int
        Those, and what it does take once it is done.
    outputs : mapping
        By the form of the call; empty until it is done, where it failed, and once it was used.
    done : threading.Event
    cancelled : bool
        Whether it is empty since its request was.
    """

    __slots__ = ("__weakref__", "cancelled", "done", "outputs", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.outputs = _NOTHING
        self.done = threading.Event()
        self.cancelled = False

    def empty(self) -> None:
        """Let go of what was made."""
        self.outputs, self.size = _NOTHING, 0


class Prefetch:
    """Calls an image processor as it was called last, with other pictures.

    To cut and scale a picture of 640x480 takes 10 ms of a processor's core, in which a GPU
    would have nothing to do and others would not be answered (H100, a 2 B model: a quarter of
    the time that 32 pictures took). How a model's processor calls its image processor is
    seen the first time; what is made ahead is used where the call turns out to be the same,
    and the image processor is asked as ever where not. One that works with MLX's arrays, that
    came with a checkpoint, or that notes something in itself is never asked ahead.

    It does not hold the model: whoever calls it may be the last to let go of it.

    Parameters
    ----------
    limit : int
        Bytes that may be ready, of all requests; while they are made, the output of each thread
        comes on top.
    slots : threading.Semaphore, optional
        How many may work at the same time.

    Attributes
    ----------
    known : set
        Keys of pictures that need not be made: what became of them is kept.
    """

    def __init__(self, limit: int, slots: threading.Semaphore = SLOTS) -> None:
        self.known: set[Hashable] = set()
        self._limit = limit
        self._slots = slots
        self._lock = threading.Lock()
        # Not a dictionary of weak values: these change by themselves while one goes through them.
        self._entries: dict[Hashable, weakref.ref[Prefetched]] = {}
        self._original: Any = None
        # By the number of pictures: how it was called, and the bytes that it made.
        self._learned: dict[int, tuple[list[Call], int]] = {}
        self._varies: set[int] = set()
        self._disabled = False

    def __call__(self, request: GenerationRequest, cancel: CancelToken) -> Prefetched | None:
        """Make a request's pictures ready. See `make`."""
        return self.make(chat_messages.images(request), cancel)

    def make(self, images: Sequence[ImageInput], cancel: CancelToken) -> Prefetched | None:
        """Make pictures ready, if it is known how; on the request's own thread.

        Returns
        -------
        Ready or None
            To be held until the request has ended.

        Raises
        ------
        Cancelled
            Before it begins to work. A request that waits here is told at once, as one in the
            queue is; this thread finds out when it is its turn.
        """
        learned = self._learned.get(len(images))
        if learned is None or not _distinct(images):
            return None
        key = key_of(images)
        while key not in self.known:
            entry, is_own = self._entry(key, learned[1])
            if entry is None:
                return None
            if is_own:
                self._run(entry, learned[0], images, cancel)
            else:
                entry.done.wait()
            if not entry.cancelled:
                return entry
        return None

    def take(self, images: Sequence[ImageInput]) -> Mapping[Hashable, Any]:
        """Return what is ready of a request's pictures, by the form of the call; once."""
        with self._lock:
            held = self._entries.pop(key_of(images), _no_entry)()
            if held is None or not held.done.is_set():
                return _NOTHING
            outputs = held.outputs
            held.empty()
            return outputs

    def learn(
        self,
        original: Any,
        images: Sequence[ImageInput],
        calls: Sequence[Call | None],
        made: Mapping[Hashable, Any],
    ) -> None:
        """See how pictures are processed; on the inference thread.

        Parameters
        ----------
        original : callable
            The model's image processor.
        images : sequence of ImageInput
            Of one request.
        calls : sequence of Call or None
            All that there were; None for one that cannot be made again.
        made : mapping
            What they gave, by form; not all of it, if it was known before.
        """
        count, known = len(images), self._learned.get(len(images))
        # Which of two that are the same is where cannot be said.
        if self._disabled or not _distinct(images):
            return
        if None in calls:
            self._give_up()
            return
        seen = [call for call in calls if call is not None]
        if known is not None:
            if [call.form for call in seen] != [call.form for call in known[0]]:
                # Its options follow the words, say: made ahead it would be made in vain.
                del self._learned[count]
                self._varies.add(count)
            return
        if count in self._varies or not seen or any(call.order is None for call in seen):
            return
        held = [made[call.form] for call in seen if call.form in made]
        if len(held) < len(seen):
            return
        if not all(map(_is_plain, held)) or not is_mlx_free(original):
            self._give_up()
            return
        self._original = original
        self._learned[count] = seen, sum(map(held_nbytes, held))

    def clear(self) -> None:
        """Let go of what is ready; it is made in its turn. What is being made stays."""
        with self._lock:
            for entry in self._live_entries():
                if entry.done.is_set():
                    entry.empty()

    def _give_up(self) -> None:
        self._disabled = True
        self._learned.clear()

    def _entry(self, key: Hashable, size: int) -> tuple[Prefetched | None, bool]:
        """Return where pictures are made, and whether that is new; None if there is no room."""
        with self._lock:
            reserved = self._reserved_bytes()
            held = self._entries.get(key, _no_entry)()
            if held is not None and not held.cancelled:
                return held, False
            if reserved + size > self._limit:
                return None, False
            made = Prefetched(size)
            self._entries[key] = weakref.ref(made)
            return made, True

    def _run(
        self,
        entry: Prefetched,
        calls: Sequence[Call],
        images: Sequence[ImageInput],
        cancel: CancelToken,
    ) -> None:
        """Work when it is its turn, and tell all who wait for it."""
        outputs = _NOTHING
        try:
            with self._slots:
                cancel.checkpoint()
                outputs = _made(self._original, calls, [image.pixels for image in images])
        except Cancelled:
            entry.cancelled = True
            raise
        finally:
            with self._lock:
                entry.outputs, entry.size = outputs, sum(map(held_nbytes, outputs.values()))
                # Some processors make more of a larger picture.
                if self._reserved_bytes() > self._limit:
                    entry.empty()
            entry.done.set()

    def _reserved_bytes(self) -> int:
        return sum(entry.size for entry in self._live_entries())

    def _live_entries(self) -> list[Prefetched]:
        """Return what somebody holds, and forget the rest; under the lock."""
        found = {key: entry for key, held in self._entries.items() if (entry := held()) is not None}
        self._entries = {key: self._entries[key] for key in found}
        return list(found.values())


def key_of(images: Sequence[ImageInput]) -> Hashable:
    """Return by what the pictures of a request are known."""
    return tuple(image.digest for image in images)


def _no_entry() -> Prefetched | None:
    return None


def _distinct(images: Sequence[ImageInput]) -> bool:
    return len({id(image.pixels) for image in images}) == len(images)


def _made(original: Any, calls: Sequence[Call], pixels: Sequence[Any]) -> Mapping[Hashable, Any]:
    found: dict[Hashable, Any] = {}
    try:
        for call in calls:
            output = call.repeat(original, pixels)
            if not _is_plain(output):
                return _NOTHING
            found[call.form] = output
    except Exception:
        # In its turn it is asked once more, and what it says then is told to the person.
        return _NOTHING
    return found


def _is_plain(output: Any) -> bool:
    """Say whether an output has no arrays of MLX."""
    import mlx.core as mx

    return not any(isinstance(array, mx.array) for array in arrays(output))
