"""Proxies of parts of a loaded model."""

from __future__ import annotations

from typing import Any


class Proxy:
    """Forwards attributes to a part; subclasses override some of them.

    Parameters
    ----------
    part : object
    """

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def install_proxy(owner: Any, name: str, proxy: Proxy) -> None:
    """Let `owner.name` be the proxy; the owner's parts, as MLX lists them, stay the same."""
    # Python looks up instance attributes before ``Module.__getattr__``.
    object.__setattr__(owner, name, proxy)
