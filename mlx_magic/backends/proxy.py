"""Stand-ins for parts of a loaded model."""

from __future__ import annotations

from typing import Any


class Proxy:
    """Passes everything on to a part; a subclass does something itself.

    Parameters
    ----------
    part : object
    """

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def install_proxy(owner: Any, name: str, proxy: Proxy) -> None:
    """Let `proxy` be found where `owner` has a part; its own parts stay as they are."""
    # Python looks here before the module's own.
    object.__setattr__(owner, name, proxy)
