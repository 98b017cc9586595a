"""Pictures that a model has seen are not encoded again: what its vision tower gave is kept."""

from __future__ import annotations

import contextlib
import operator
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from mlx_magic.inference.backends import outputs
from mlx_magic.inference.backends.pictures import Pictures
from mlx_magic.inference.backends.tower_call import TowerCall
from mlx_magic.inference.cancel import Cancelled

T = TypeVar("T")

TOWERS = (
    "vision_tower",
    "vision_model",
    "visual",
    "vision_encoder",
    "vision",
    "image_encoder",
    "image_vit",
    "sam_model",
)
"""Names under which mlx-vlm's models have what encodes pictures."""


class Features:
    """What one model's vision tower gave, by the content of what it got.

    It stands in front of the tower while a model makes its embeddings, and only then: a
    model needs no method of its own for this, and none is left changed. A tower that takes
    a batch of pictures is asked for those alone that are new; that it is one, and not one
    that mixes them, is seen when it first gets two or more. What was encoded is kept once
    the embeddings are made, evaluated, and never where that failed or was cancelled.

    Parameters
    ----------
    limit : int
        Bytes to keep; what was not used for longest goes first.

    Attributes
    ----------
    hits, misses : int
        Pictures that were known, and that were encoded; a call that cannot be told apart
        by picture counts as one.
    nbytes : int
        What is kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = self.nbytes = 0
        self.keeps_all = False
        self.by_row: dict[str, bool] = {}
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def look(self, model: Any, see: Callable[[], T], pictures: Pictures | None = None) -> T:
        """Let a model make its embeddings; on the inference thread.

        Parameters
        ----------
        model : module
        see : callable
            Calls the model, and evaluates what it gives.
        pictures : Pictures, optional
            What the request shows. What a tower gets is made of that alone, so that the
            numbers need not be looked at once more, and fetched from a GPU for that.
        """
        look = _Look(self, pictures)
        try:
            with _in_front_of_towers(model, look):
                seen = see()
        except Cancelled:
            raise
        except Exception:
            if not look.lacked:
                raise
            # It wanted this time what it did not look at when the picture was new.
            self.keeps_all = True
            self.clear()
            return self.look(model, see, pictures)
        look.keep()
        return seen

    def clear(self) -> None:
        """Forget all pictures."""
        self._kept.clear()
        self.nbytes = 0

    def get(self, key: Hashable) -> Any:
        """Return what the tower gave, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, output: Any) -> None:
        """Keep what the tower gave; evaluated arrays."""
        size = sum(array.nbytes for array in outputs.arrays(output))
        if key in self._kept or size > self.limit:
            return
        self._kept[key] = (output, size)
        self.nbytes += size
        while self.nbytes > self.limit:
            _, (_, size) = self._kept.popitem(last=False)
            self.nbytes -= size


class _Tower:
    """Stands in front of a vision tower; in all but the call it is the tower."""

    def __init__(self, tower: Any, name: str, look: _Look) -> None:
        self._tower = tower
        self._name = name
        self._look = look

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = TowerCall.of(self._name, args, kwargs, is_first=self._look.is_first(self._name))
        if call is None:
            return self._tower(*args, **kwargs)
        return self._look.at(call, self._tower)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)


@contextlib.contextmanager
def _in_front_of_towers(model: Any, look: _Look) -> Iterator[None]:
    import mlx.nn as nn

    inner = [
        part
        for name, part in model.items()
        if isinstance(part, nn.Module) and name not in (*TOWERS, "language_model")
    ]
    with contextlib.ExitStack() as stack:
        for owner in (model, *inner):
            for name in TOWERS:
                tower = owner.get(name)
                if isinstance(tower, nn.Module):
                    # Python looks here before the module's own parts, which stay as they are.
                    object.__setattr__(owner, name, _Tower(tower, name, look))
                    stack.callback(object.__delattr__, owner, name)
        yield


@dataclass(slots=True)
class _Fresh:
    """What was encoded in a look: the outputs by key, and what the model looked at of them."""

    found: dict[Hashable, Any]
    watch: Any


class _Look:
    """One look of a model at its pictures.

    Attributes
    ----------
    lacked : bool
        Whether the model got something of which not all was kept.
    """

    def __init__(self, features: Features, pictures: Pictures | None) -> None:
        self._features = features
        self._pictures = pictures
        self._called: set[str] = set()
        self._fresh: list[_Fresh] = []
        self.lacked = False

    def is_first(self, name: str) -> bool:
        """Say whether a tower was not called before, and note that it is now."""
        known = name in self._called
        self._called.add(name)
        return not known

    def at(self, call: TowerCall, tower: Any) -> Any:
        """Return what a tower gives for a call."""
        try:
            keys = None if self._by_row(call) else [call.key(self._pictures)]
            if keys is None:
                keys = call.keys(self._pictures)
        except TypeError:
            return tower(*call.args, **call.kwargs)
        if len(keys) == 1:
            return self._whole(call, tower, keys[0])
        return self._rows(call, tower, keys)

    def _by_row(self, call: TowerCall) -> bool:
        return call.pictures > 1 and self._features.by_row.get(call.name, False)

    def _whole(self, call: TowerCall, tower: Any, key: Hashable) -> Any:
        known = self._features.get(key)
        if known is not None:
            self._features.hits += 1
            return self._give(known)
        output = tower(*call.args, **call.kwargs)
        self._features.misses += max(call.pictures, 1)
        try:
            held = outputs.arrays(output)
        except TypeError:
            return output
        found = {key: output}
        if call.pictures > 1:
            alike = bool(held) and _of_rows(output, call.pictures)
            self._features.by_row[call.name] = alike
            if alike:
                found = dict(
                    zip(call.keys(self._pictures), _split(output, call.pictures), strict=True)
                )
        return self._new(found, output)

    def _rows(self, call: TowerCall, tower: Any, keys: list[Hashable]) -> Any:
        known = {key: self._features.get(key) for key in keys}
        if not all(held is None or _of_rows(held, 1) for held in known.values()):
            return tower(*call.args, **call.kwargs)
        new = [at for at, key in enumerate(keys) if known[key] is None and keys.index(key) == at]
        self._features.misses += len(new)
        self._features.hits += len(keys) - len(new)
        found: dict[Hashable, Any] = {}
        if new:
            part = call.rows(new) if len(new) < len(keys) else call
            output = tower(*part.args, **part.kwargs)
            if not _of_rows(output, len(new)):
                self._features.by_row[call.name] = False
                return tower(*call.args, **call.kwargs)
            found = dict(zip([keys[at] for at in new], _split(output, len(new)), strict=True))
        whole = outputs.joined([found[key] if key in found else known[key] for key in keys])
        return self._new(found, whole) if found else self._give(whole)

    def _give(self, output: Any) -> Any:
        self.lacked = self.lacked or outputs.has_left_out(output)
        return output

    def _new(self, found: dict[Hashable, Any], output: Any) -> Any:
        watch = outputs.watched(output)
        self._fresh.append(_Fresh(found, watch))
        self._give(output)
        return watch

    def keep(self) -> None:
        """Keep what was encoded: the embeddings are made of it, and all went well."""
        import mlx.core as mx

        for fresh in self._fresh:
            for key, output in fresh.found.items():
                if not self._features.keeps_all:
                    output = outputs.looked_at(output, fresh.watch)
                # Rows are copied out of their batch, which is not to live on for one of them.
                own = outputs.mapped(mx.contiguous, output)
                mx.eval(outputs.arrays(own))
                self._features.put(key, own)


def _of_rows(output: Any, count: int) -> bool:
    """Say whether each array has a row for each picture."""
    return all(array.ndim and array.shape[0] == count for array in outputs.arrays(output))


def _split(output: Any, count: int) -> list[Any]:
    return [outputs.mapped(operator.itemgetter(slice(at, at + 1)), output) for at in range(count)]
