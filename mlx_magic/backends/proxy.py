"""A stand-in for a part of a model, which is that part in all but what a subclass does itself."""

from __future__ import annotations

from typing import Any


class Proxy:
    """Stands in front of a part; in all but what a subclass does itself it is the part.

    Parameters
    ----------
    part : object
    """

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def put_in_front(owner: Any, name: str, front: Proxy) -> None:
    """Let `front` be found where `owner` has a part; its own parts stay as they are."""
    # Python looks here before the module's own.
    object.__setattr__(owner, name, front)
