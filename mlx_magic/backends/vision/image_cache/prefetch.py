"""Image preprocessing on the request's own thread, before its turn on the inference thread."""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from mlx_magic.backends.chat_templates import chat_messages
from mlx_magic.backends.device import platform
from mlx_magic.backends.vision.image_cache.processor_call import Call, arrays, held_nbytes
from mlx_magic.cancellation import Cancelled

if TYPE_CHECKING:
    from mlx_magic.cancellation import CancelToken
    from mlx_magic.engine.request import GenerationRequest
    from mlx_magic.images.image import ImageInput


SLOTS = threading.Semaphore(platform.preprocessing_threads())
"""Shared by all models."""

_NOTHING: Mapping[Hashable, Any] = {}


class Prefetched:
    """Preprocessed images of a request, which the request holds until it has ended.

    Parameters
    ----------
    size : int
        Expected bytes, from an earlier request.

    Attributes
    ----------
    size : int
        Expected bytes, then actual bytes.
    outputs : mapping
        Outputs by the form of the call; empty before the end, after an error and after use.
    done : threading.Event
    cancelled : bool
        Whether the request was cancelled before the work began.
    """

    __slots__ = ("__weakref__", "cancelled", "done", "outputs", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.outputs = _NOTHING
        self.done = threading.Event()
        self.cancelled = False

    def empty(self) -> None:
        """Drop the outputs."""
        self.outputs, self.size = _NOTHING, 0


class Prefetch:
    """Calls an image processor ahead of time, as an earlier request called it.

    To crop and scale an image of 640x480 takes 10 ms of a CPU core. On the inference thread the
    GPU would be idle meanwhile (H100, a 2 B model: a quarter of the time for 32 images). The
    first request shows how a model's processor calls its image processor. A prefetched output is
    used if the actual call turns out to be the same; otherwise the image processor is called as
    usual. Never prefetched are image processors that use MLX arrays, that came with a
    checkpoint, or that change their own state.

    It holds no reference to the model, which must not be freed on the calling thread.

    Parameters
    ----------
    limit : int
        Maximum bytes of prefetched outputs of all requests; during the work the output of each
        thread comes on top.
    slots : threading.Semaphore, optional
        Limits the number of threads that work at the same time.

    Attributes
    ----------
    known : set
        Keys of images whose outputs are in the processor cache.
    """

    def __init__(self, limit: int, slots: threading.Semaphore = SLOTS) -> None:
        self.known: set[Hashable] = set()
        self._limit = limit
        self._slots = slots
        self._lock = threading.Lock()
        # Not a WeakValueDictionary, which may change during iteration.
        self._entries: dict[Hashable, weakref.ref[Prefetched]] = {}
        self._original: Any = None
        # By the number of images: the calls, and the bytes of their outputs.
        self._learned: dict[int, tuple[list[Call], int]] = {}
        self._varies: set[int] = set()
        self._disabled = False

    def __call__(self, request: GenerationRequest, cancel: CancelToken) -> Prefetched | None:
        """Prefetch a request's images. See `make`."""
        return self.make(chat_messages.images(request), cancel)

    def make(self, images: Sequence[ImageInput], cancel: CancelToken) -> Prefetched | None:
        """Prefetch images, if the calls are known; on the request's own thread.

        Returns
        -------
        Prefetched or None
            Hold it until the request has ended.

        Raises
        ------
        Cancelled
            Before the work begins. The outcome of a request that waits here is set at once, as
            for a queued one; this thread notices when it gets its slot.
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
        """Take the prefetched outputs of a request's images, by the form of the call; once."""
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
        """Learn from a request how its images were processed; on the inference thread.

        Parameters
        ----------
        original : callable
            The model's image processor.
        images : sequence of ImageInput
            Images of the request.
        calls : sequence of Call or None
            All calls; None for a call that cannot be repeated.
        made : mapping
            Outputs by form, without those that were cached.
        """
        count, known = len(images), self._learned.get(len(images))
        # With equal images it is unclear which of them a call got.
        if self._disabled or not _distinct(images):
            return
        if None in calls:
            self._give_up()
            return
        seen = [call for call in calls if call is not None]
        if known is not None:
            if [call.form for call in seen] != [call.form for call in known[0]]:
                # The calls vary (with the text, say), so that a prefetch would be wasted.
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
        """Drop finished outputs, which are then made as usual; unfinished ones stay."""
        with self._lock:
            for entry in self._live_entries():
                if entry.done.is_set():
                    entry.empty()

    def _give_up(self) -> None:
        self._disabled = True
        self._learned.clear()

    def _entry(self, key: Hashable, size: int) -> tuple[Prefetched | None, bool]:
        """Return the entry of images, and whether it is new; None if the limit is reached."""
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
        """Call the image processor once a slot is free, and wake all threads that wait for it."""
        outputs = _NOTHING
        try:
            with self._slots:
                cancel.checkpoint()
                outputs = _call_all(self._original, calls, [image.pixels for image in images])
        except Cancelled:
            entry.cancelled = True
            raise
        finally:
            with self._lock:
                entry.outputs, entry.size = outputs, sum(map(held_nbytes, outputs.values()))
                # The output may be larger than expected, for a larger image.
                if self._reserved_bytes() > self._limit:
                    entry.empty()
            entry.done.set()

    def _reserved_bytes(self) -> int:
        return sum(entry.size for entry in self._live_entries())

    def _live_entries(self) -> list[Prefetched]:
        """Return the entries that a request still holds, and drop the rest; under the lock."""
        found = {key: entry for key, held in self._entries.items() if (entry := held()) is not None}
        self._entries = {key: self._entries[key] for key in found}
        return list(found.values())


def key_of(images: Sequence[ImageInput]) -> Hashable:
    """Return the cache key of a request's images."""
    return tuple([image.digest for image in images])


def _no_entry() -> Prefetched | None:
    return None


def _distinct(images: Sequence[ImageInput]) -> bool:
    return len({id(image.pixels) for image in images}) == len(images)


def _call_all(
    original: Any, calls: Sequence[Call], pixels: Sequence[Any]
) -> Mapping[Hashable, Any]:
    found: dict[Hashable, Any] = {}
    try:
        for call in calls:
            output = call.repeat(original, pixels)
            if not _is_plain(output):
                return _NOTHING
            found[call.form] = output
    except Exception:
        # The call on the inference thread will raise the error again, and report it.
        return _NOTHING
    return found


def _is_plain(output: Any) -> bool:
    """Whether an output has no MLX arrays."""
    import mlx.core as mx

    return not any(isinstance(array, mx.array) for array in arrays(output))


KNOWN = ("transformers", "mlx_vlm")
"""Packages whose code is inspected; any other code, such as a checkpoint's, may use MLX."""


def is_mlx_free(part: object) -> bool:
    """Whether no method of an object's class refers to MLX.

    It inspects the names in the code, and one level further the functions that these name. Code
    that reaches MLX in more steps is not detected, so check its output for MLX arrays, too.

    Parameters
    ----------
    part : object
        An image processor, say.
    """
    kinds = [kind for kind in type(part).__mro__ if not _is_of(kind, sys.stdlib_module_names)]
    return all(_is_of(kind, KNOWN) and not any(map(_names_mlx, _functions(kind))) for kind in kinds)


def _functions(kind: type) -> Iterator[FunctionType]:
    for value in vars(kind).values():
        method: Any = value.fget if isinstance(value, property) else value
        held = inspect.unwrap(method)
        if isinstance(held, FunctionType):
            yield held


def _names_mlx(function: FunctionType) -> bool:
    names = set(_names(function.__code__))
    held = [function.__globals__.get(name) for name in names]
    return any(_package(name) == "mlx" for name in names) or any(map(_leads_to_mlx, held))


def _leads_to_mlx(value: Any) -> bool:
    if _is_of(value, ("mlx",)):
        return True
    # Such as `to_mlx`, which makes arrays of whatever it is given.
    return isinstance(value, FunctionType) and any(
        _is_of(value.__globals__.get(name), ("mlx",)) for name in _names(value.__code__)
    )


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names in code: globals, attributes, imports; those of nested functions, too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_of(value: Any, packages: Container[str]) -> bool:
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return _package(module if isinstance(module, str) else "") in packages


def _package(module: str) -> str:
    return module.partition(".")[0]
