"""What a language model stores of a prompt in itself, which must not leak into another prompt."""

from __future__ import annotations

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
        self._model = language_model
        self._before: dict[str, Any] | None = None
        self.has_positions = upstream.keeps_positions(language_model)

    def look(self) -> None:
        """Remember the attributes, before a prompt."""
        if self._before is None:
            self._before = self._attributes()

    @property
    def has_changed(self) -> bool:
        """Whether an attribute has changed since `look`."""
        now = self._attributes()
        before = self._before if self._before is not None else now
        changed = before.keys() != now.keys() or any(
            before[name] is not value for name, value in now.items()
        )
        if changed:
            upstream.VISION_PREFIXES.turn_off("keeps positions of a prompt under other names")
        return changed

    def forget(self) -> None:
        """Release the attributes."""
        self._before = None

    def _attributes(self) -> dict[str, Any]:
        # A module of MLX keeps arrays among its parts, and anything else as attributes.
        found = {**getattr(self._model, "__dict__", {}), **dict(_items(self._model))}
        return {name: value for name, value in found.items() if name not in upstream.POSITIONS}


def _items(module: Any) -> Any:
    return module.items() if isinstance(module, dict) else ()
