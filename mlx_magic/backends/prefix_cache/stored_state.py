"""What a language model stores of a prompt in itself, which must not leak into another prompt."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from mlx_magic.backends import upstream


class StoredState:
    """Attributes of a language model that a prompt may change.

    Some models store the positions of the last prompt, and a later prompt after a cached prefix
    would get wrong ones, unless it hands over its own. mlx-vlm's names for them are known. Since a
    release may rename them, all other plain attributes are compared around a prompt, too.

    Parameters
    ----------
    language_model : module or None
    """

    def __init__(self, language_model: Any) -> None:
        # Not the model itself: an unloaded one must be freed without a search for cycles.
        self._model = _weakly(language_model)
        self._before: dict[str, Any] | None = None
        self.has_positions = upstream.keeps_positions(language_model)

    def look(self) -> None:
        """Remember the attributes, before a prompt."""
        if self._before is None:
            self._before = self._attributes()

    def is_unchanged(self) -> bool:
        """Whether no attribute has changed since `look`."""
        now = self._attributes()
        before = self._before if self._before is not None else now
        changed = before.keys() != now.keys() or any(
            before[name] is not value for name, value in now.items()
        )
        if changed:
            upstream.VISION_PREFIXES.turn_off("keeps positions of a prompt under other names")
        return not changed

    def forget(self) -> None:
        """Release the attributes."""
        self._before = None

    def _attributes(self) -> dict[str, Any]:
        # A module of MLX keeps arrays among its parts, and anything else as attributes.
        model = self._model()
        found = {**getattr(model, "__dict__", {}), **dict(_items(model))}
        return {name: value for name, value in found.items() if name not in upstream.POSITIONS}


def _weakly(thing: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(thing)
    except TypeError:  # None, or an object without weak references
        return lambda: thing


def _items(module: Any) -> Any:
    return module.items() if isinstance(module, dict) else ()
