"""Cache of image processor outputs."""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_magic.backends.prefix_cache.prompt_keys import ImageKeys
from mlx_magic.backends.vision.image_cache.prefetch import Prefetch, key_of
from mlx_magic.backends.vision.image_cache.processor_call import Call, copied, held_nbytes, state

if TYPE_CHECKING:
    from mlx_magic.images.image import ImageInput


@dataclass(slots=True)
class _Made:
    """Outputs for the images of a request."""

    outputs: dict[Hashable, Any] = field(default_factory=dict)
    image_keys: ImageKeys | None = None
    nbytes: int = 0


class ProcessorCache:
    """LRU cache of image processor outputs, by the images of a request.

    It replaces the processor's ``image_processor`` while a request's inputs are made, and only
    then. An image of 17 tiles took 0.15 s to process: most of the time to a second question's
    first token, once everything else is cached. Not cached are processors without such an
    attribute, and outputs that may not be safe to share.

    Parameters
    ----------
    limit : int
        Maximum bytes; the least recently used outputs are evicted first.

    Attributes
    ----------
    nbytes : int
        Bytes held.
    prefetch : Prefetch
        Prefetches images; any thread may call it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._kept: OrderedDict[Hashable, _Made] = OrderedDict()
        self.prefetch = Prefetch(limit)

    @contextlib.contextmanager
    def intercepting(self, processor: Any, images: Sequence[ImageInput]) -> Iterator[None]:
        """Serve calls of the image processor from the cache within this block.

        New outputs are cached when the block ends without an error.

        Parameters
        ----------
        processor : object
            The model's processor.
        images : sequence of ImageInput
            All images of the request.
        """
        original = getattr(processor, "image_processor", None)
        if not images or not callable(original):
            yield
            return
        key = key_of(images)
        known = self._kept.get(key)
        ahead = self.prefetch.take(images)
        # LFM2's processor replaces an image processor whose class has another name.
        kind = type(type(original).__name__, (_CachedImageProcessor,), {})
        interceptor = kind(original, images, known.outputs if known else {}, ahead)
        processor.image_processor = interceptor
        try:
            yield
        finally:
            processor.image_processor = original
        self.prefetch.learn(original, images, interceptor.calls, interceptor.new)
        if not interceptor.new:
            if known is not None:
                self._kept.move_to_end(key)
            return
        if known is not None:
            # The calls differ from the cached ones, so that the cached image keys do not apply.
            self._drop(key)
        self._keep(key, _Made(interceptor.new, nbytes=held_nbytes(interceptor.new)))

    @contextlib.contextmanager
    def keyed(
        self, images: Sequence[ImageInput], inputs: Mapping[str, Any]
    ) -> Iterator[ImageKeys | None]:
        """Yield the keys of a request's images within this block.

        While the images are cached, their keys are reused, so that nothing has to be hashed.

        Parameters
        ----------
        images : sequence of ImageInput
        inputs : mapping
            The processor's output for them.
        """
        made = self._kept.get(key_of(images)) if images else None
        if made is not None and made.image_keys is not None:
            yield made.image_keys
            return
        image_keys = ImageKeys.of(inputs)
        try:
            yield image_keys
        finally:
            if image_keys is not None:
                self._keep_keys(key_of(images), image_keys, held_nbytes(list(inputs.values())))

    def clear(self) -> None:
        """Clear the cache."""
        self.prefetch.clear()
        for key in list(self._kept):
            self._drop(key)

    def _keep_keys(self, key: Hashable, image_keys: ImageKeys, size: int) -> None:
        made = self._kept.get(key)
        if made is None or made.image_keys is not None:
            image_keys.settle()
            return
        # The keys hold the inputs, which are copies of the outputs.
        made.image_keys = image_keys
        made.nbytes += size
        self.nbytes += size
        self._evict()

    def _keep(self, key: Hashable, made: _Made) -> None:
        if made.nbytes > self.limit:
            return
        self._kept[key] = made
        self.prefetch.known.add(key)
        self.nbytes += made.nbytes
        self._evict()

    def _evict(self) -> None:
        while self.nbytes > self.limit:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> None:
        made = self._kept.pop(key)
        self.prefetch.known.discard(key)
        self.nbytes -= made.nbytes
        if made.image_keys is not None:
            made.image_keys.settle()


class _CachedImageProcessor:
    """Proxy of an image processor whose calls are served from the cache.

    Parameters
    ----------
    original : callable
    images : sequence of ImageInput
        Images of the request.
    known, ahead : dict
        Cached and prefetched outputs, by the form of the call.

    Attributes
    ----------
    new : dict
        New outputs, by the form of the call.
    calls : list of Call
        All calls; None for a call that cannot be prefetched.
    """

    def __init__(
        self,
        original: Any,
        images: Sequence[ImageInput],
        known: Mapping[Hashable, Any],
        ahead: Mapping[Hashable, Any],
    ) -> None:
        self._original = original
        self._pixels = [image.pixels for image in images]
        self._known = known
        self._ahead = ahead
        self.new: dict[Hashable, Any] = {}
        self.calls: list[Call | None] = []

    def __call__(self, images: Any = None, *args: Any, **options: Any) -> Any:
        return self._served("", self._original, images, *args, **options)

    def _served(
        self, method: str, original: Callable[..., Any], images: Any, *args: Any, **options: Any
    ) -> Any:
        try:
            call = Call.of(len(self.calls), images, args, options, self._pixels, method)
        except TypeError:
            self.calls.append(None)
            return original(images, *args, **options)
        self.calls.append(call)
        if call.form in self._known:
            return copied(self._known[call.form])
        if call.form in self._ahead:
            output = self._ahead[call.form]
        else:
            before = state(self._original)
            output = original(images, *args, **options)
            if state(self._original) != before:
                # The call changed the image processor's state, which its processor may read.
                self.calls[-1] = None
        with contextlib.suppress(TypeError):
            self.new[call.form] = copied(output)
        return output

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._original, name)
        # The processors of Molmo and MiniCPM do not call the image processor itself.
        if name == "preprocess" and callable(value):
            return functools.partial(self._preprocess, value)
        return value

    def _preprocess(self, original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if not args and "images" not in options:
            self.calls.append(None)
            return original(*args, **options)
        images, *rest = args or (options.pop("images"),)
        return self._served("preprocess", original, images, *rest, **options)
