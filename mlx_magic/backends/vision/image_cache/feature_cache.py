"""Cache of vision encoder outputs, so that an image is encoded once."""

from __future__ import annotations

import contextlib
import operator
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.prompt_keys import ImageKeys
from mlx_magic.backends.proxy import Proxy, install_proxy
from mlx_magic.backends.vision.image_cache import encoders
from mlx_magic.backends.vision.image_cache.encoders import EncoderCall, vision_encoders
from mlx_magic.cancellation import Cancelled

T = TypeVar("T")

OnGroup = Callable[[int, int], None]
"""Takes the number of images done and the total known so far; may raise `Cancelled`."""


class FeatureCache:
    """LRU cache of one model's vision encoder outputs, by the content of the encoder's inputs.

    While a model makes its embeddings, a proxy is installed in front of its vision encoder and
    removed afterwards, so that models need no support for this. An encoder that takes a batch of
    images is called for the new ones only. Whether it encodes each image by itself, rather than
    mixing them, is found out when it first gets two or more. New images are encoded in groups
    (see `platform.images_at_once`), and a request can be cancelled between groups; the first
    group of an untested encoder has at least two images. Outputs are cached once the embeddings
    are evaluated, and never after an error or a cancel.

    Parameters
    ----------
    limit : int
        Maximum bytes; the least recently used outputs are evicted first.

    Attributes
    ----------
    hits, misses : int
        Cached and encoded images; a call that cannot be split by image counts as one.
    nbytes : int
        Bytes held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = self.nbytes = 0
        self.keeps_all = False
        self.by_row: dict[str, bool] = {}
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._ahead: dict[Hashable, Any] = {}
        self._splits: dict[str, bool] = {}

    def encode_together(self, model: Any, waiting: Sequence[WaitingImages]) -> None:
        """Call the vision encoder once for the images of several requests.

        Each request finds its part when `encode` makes its embeddings. Requests whose encoder is
        called in another form, or more than once before it returns, are left out.

        Parameters
        ----------
        model : module
        waiting : sequence of WaitingImages
            At most as many as `platform.images_at_once`.
        """
        found: dict[Hashable, list[tuple[Hashable, EncoderCall, Any]]] = {}
        for each in waiting:
            captured = _first_call(model, each.embed)
            if captured is None:
                continue
            call, tower = captured
            try:
                key = call.key(each.image_keys)
            except TypeError:
                continue
            if call.parts and self.get(key) is None and key not in self._ahead:
                found.setdefault(call.form, []).append((key, call, tower))
        for calls in found.values():
            unique = {key: (call, tower) for key, call, tower in calls}
            if len(unique) > 1:
                self._call_together(unique)

    def forget_ahead(self) -> None:
        """Drop outputs that no request waits for any more."""
        self._ahead.clear()

    def take_ahead(self, key: Hashable) -> Any:
        """Return an output that was made with those of other requests, or None."""
        return self._ahead.pop(key, None)

    def _call_together(self, calls: dict[Hashable, tuple[EncoderCall, Any]]) -> None:
        parts = [call for call, _ in calls.values()]
        first, tower = next(iter(calls.values()))
        if not self._splits.get(first.name, True):
            return
        whole = EncoderCall.concatenated(parts)
        output = tower(*whole.args, **whole.kwargs)
        split = encoders.split(output, [call.parts for call in parts])
        if first.name not in self._splits:
            # Once: an encoder that mixes the images of a call gives other features.
            alone = tower(*first.args, **first.kwargs)
            self._splits[first.name] = split is not None and encoders.agree(split[0], alone)
        if split is not None and self._splits[first.name]:
            self._ahead.update(zip(calls, split, strict=True))

    def encode(
        self,
        model: Any,
        embed: Callable[[], T],
        on_group: OnGroup = lambda *_: None,
        *,
        image_keys: ImageKeys | None = None,
    ) -> T:
        """Let a model make its embeddings; on the inference thread.

        Parameters
        ----------
        model : module
        embed : callable
            Calls the model, and evaluates its output.
        on_group : callable
            Called before each group of images, when the group before is done.
        image_keys : ImageKeys, optional
            Keys of the request's images. With them the encoder's inputs need not be hashed, for
            which they would have to be fetched from a GPU.

        Raises
        ------
        Cancelled
            `on_group` raised it.
        """
        encoder_pass = _EncoderPass(self, on_group, image_keys)
        try:
            with _intercepting_towers(model, encoder_pass):
                result = embed()
        except Cancelled:
            raise
        except Exception:
            if not encoder_pass.missing:
                raise
            # The model accessed an item that it had not used when the image was new.
            self.keeps_all = True
            self.clear()
            return self.encode(model, embed, on_group, image_keys=image_keys)
        encoder_pass.keep(result)
        return result

    def clear(self) -> None:
        """Clear the cache."""
        self._kept.clear()
        self.nbytes = 0

    def get(self, key: Hashable) -> Any:
        """Return a cached output, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, output: Any) -> None:
        """Cache an output of evaluated arrays."""
        size = sum(array.nbytes for array in encoders.arrays(output))
        if key in self._kept or size > self.limit:
            return
        self._kept[key] = (output, size)
        self.nbytes += size
        while self.nbytes > self.limit:
            _, (_, size) = self._kept.popitem(last=False)
            self.nbytes -= size


@dataclass(frozen=True, slots=True)
class WaitingImages:
    """A request whose images are not encoded yet.

    Attributes
    ----------
    embed : callable
        Lets the model make the request's embeddings, without evaluating them.
    image_keys : ImageKeys or None
    """

    embed: Callable[[], object]
    image_keys: ImageKeys | None


class _FirstCall(Exception):  # noqa: N818 - it is no error
    """The first call of a vision encoder, instead of its result."""

    def __init__(self, call: EncoderCall | None, tower: Any) -> None:
        super().__init__()
        self.call = call
        self.tower = tower


class _CapturingProxy(Proxy):
    """Proxy of a vision encoder that reports its first call, and does not make it."""

    def __init__(self, tower: Any, name: str) -> None:
        super().__init__(tower)
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise _FirstCall(EncoderCall.of(self._name, args, kwargs, is_first=True), self._part)


def _first_call(model: Any, embed: Callable[[], object]) -> tuple[EncoderCall, Any] | None:
    """Return the first call of a vision encoder, and the encoder; None if there is none."""
    with contextlib.ExitStack() as stack:
        for owner, name, tower in list(vision_encoders(model)):
            install_proxy(owner, name, _CapturingProxy(tower, name))
            stack.callback(object.__delattr__, owner, name)
        try:
            embed()
        except _FirstCall as first:
            return None if first.call is None else (first.call, first.tower)
        except Exception:
            return None  # the request will report it
    return None


class _EncoderProxy(Proxy):
    """Proxy of a vision encoder whose calls go through the cache."""

    def __init__(self, tower: Any, name: str, encoder_pass: _EncoderPass) -> None:
        super().__init__(tower)
        self._name = name
        self._pass = encoder_pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = EncoderCall.of(self._name, args, kwargs, is_first=self._pass.is_first(self._name))
        if call is None:
            return self._part(*args, **kwargs)
        return self._pass.run(call, self._part)


@contextlib.contextmanager
def _intercepting_towers(model: Any, encoder_pass: _EncoderPass) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner, name, tower in list(vision_encoders(model)):
            install_proxy(owner, name, _EncoderProxy(tower, name, encoder_pass))
            stack.callback(object.__delattr__, owner, name)
        yield


@dataclass(slots=True)
class _NewOutputs:
    """New outputs by key, and the watched copy that records which items the model used."""

    found: dict[Hashable, Any]
    watch: Any


class _EncoderPass:
    """All encoder calls of one request.

    Attributes
    ----------
    missing : bool
        Whether the model got a cached output with items left out.
    """

    def __init__(
        self, features: FeatureCache, on_group: OnGroup, image_keys: ImageKeys | None
    ) -> None:
        self._features = features
        self._on_group = on_group
        self._image_keys = image_keys
        self._called: set[str] = set()
        self._new_outputs: list[_NewOutputs] = []
        self._running: Any = None
        self._done = 0
        self.missing = False

    def is_first(self, name: str) -> bool:
        """Whether an encoder was not called before; records the call."""
        known = name in self._called
        self._called.add(name)
        return not known

    def run(self, call: EncoderCall, tower: Any) -> Any:
        """Return the encoder's output for a call."""
        by_row = call.image_count > 1 and self._features.by_row.get(call.name, _wants_trial(call))
        try:
            keys = call.keys(self._image_keys) if by_row else [call.key(self._image_keys)]
        except TypeError:
            return tower(*call.args, **call.kwargs)
        before = self._done
        output = self._rows(call, tower, keys) if by_row else self._whole(call, tower, keys[0])
        self._done = before + max(call.image_count, 1)
        return output

    def _whole(self, call: EncoderCall, tower: Any, key: Hashable) -> Any:
        known = self._features.get(key)
        if known is not None:
            self._features.hits += 1
            return self._give(known)
        output = self._features.take_ahead(key)
        if output is None:
            output = self._encode(call, tower, self._done, max(call.image_count, 1))
        self._features.misses += max(call.image_count, 1)
        try:
            held = encoders.arrays(output)
        except TypeError:
            return output
        found = {key: output}
        if call.image_count > 1:
            alike = bool(held) and _of_rows(output, call.image_count)
            # An earlier result for this encoder stays.
            if self._features.by_row.setdefault(call.name, alike) and alike:
                found = dict(
                    zip(call.keys(self._image_keys), _split(output, call.image_count), strict=True)
                )
        return self._new(found, output)

    def _rows(self, call: EncoderCall, tower: Any, keys: list[Hashable]) -> Any:
        known = {key: self._features.get(key) for key in keys}
        if not all(held is None or _of_rows(held, 1) for held in known.values()):
            return self._encode(call, tower, self._done, call.image_count)
        new = [at for at, key in enumerate(keys) if known[key] is None and keys.index(key) == at]
        tried = call.name in self._features.by_row
        if not tried and len(new) < 2:
            # One image is no test: an encoder that mixes images returns one row for it, too.
            return self._whole(call, tower, call.key(self._image_keys))
        found: dict[Hashable, Any] = {}
        for part in _groups(new, tried=tried):
            done = self._done + call.image_count - (len(new) - len(found))
            some = call.rows(part) if len(part) < len(keys) else call
            output = self._encode(some, tower, done, call.image_count)
            alike = _is_rows(output, len(part))
            if len(part) > 1 or not alike:
                self._features.by_row[call.name] = alike
            if not alike:
                return self._whole(call, tower, call.key(self._image_keys))
            found |= zip([keys[at] for at in part], _split(output, len(part)), strict=True)
        self._features.misses += len(new)
        self._features.hits += len(keys) - len(new)
        whole = encoders.joined([found[key] if key in found else known[key] for key in keys])
        return self._new(found, whole) if found else self._give(whole)

    def _encode(self, call: EncoderCall, tower: Any, done: int, image_count: int) -> Any:
        """Call the encoder once its previous call is done, so that a cancel can come between."""
        import mlx.core as mx

        if self._running is not None:
            mx.eval(self._running)
        self._on_group(done, self._done + image_count)
        output = tower(*call.args, **call.kwargs)
        # The first array only: not every state of every layer is needed.
        self._running = _first_array(output)
        return output

    def _give(self, output: Any) -> Any:
        self.missing = self.missing or encoders.has_left_out(output)
        return output

    def _new(self, found: dict[Hashable, Any], output: Any) -> Any:
        watch = encoders.recording_access(output)
        self._new_outputs.append(_NewOutputs(found, watch))
        self._give(output)
        return watch

    def keep(self, result: object) -> None:
        """Cache the new outputs, after the model has made its `result` from them."""
        import mlx.core as mx

        for entry in self._new_outputs:
            encoders.mark_used_by(entry.watch, result)
            for key, output in entry.found.items():
                if not self._features.keeps_all:
                    output = encoders.without_unused(output, entry.watch)
                # A copy, so that a cached row does not keep its whole batch in memory.
                own = encoders.mapped(mx.contiguous, output)
                mx.eval(encoders.arrays(own))
                self._features.put(key, own)


def _wants_trial(call: EncoderCall) -> bool:
    """Whether this call has enough images to test if the encoder returns one row per image."""
    return call.image_count > max(platform.images_at_once(), 2)


def _groups(indices: list[int], *, tried: bool) -> list[list[int]]:
    """Split new images into groups; the first of an untested encoder has at least two."""
    size = platform.images_at_once()
    first = size if tried else max(size, 2)
    rest = range(first, len(indices), size)
    return [part for part in (indices[:first], *(indices[at : at + size] for at in rest)) if part]


def _is_rows(output: Any, count: int) -> bool:
    try:
        return bool(encoders.arrays(output)) and _of_rows(output, count)
    except TypeError:
        return False


def _first_array(output: Any) -> Any:
    try:
        return next(iter(encoders.arrays(output)), None)
    except TypeError:
        return None


def _of_rows(output: Any, count: int) -> bool:
    """Whether each array has a row per image."""
    return all(array.ndim and array.shape[0] == count for array in encoders.arrays(output))


def _split(output: Any, count: int) -> list[Any]:
    return [encoders.mapped(operator.itemgetter(slice(at, at + 1)), output) for at in range(count)]
