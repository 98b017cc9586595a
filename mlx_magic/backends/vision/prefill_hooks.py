"""Cancellation points and progress inside mlx-vlm's own prefill, which has neither."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from mlx_magic.backends.batching.kv_cache import leaf_caches
from mlx_magic.cancellation import CancelToken


@contextlib.contextmanager
def cancellable_prefill(
    caches: list[Any], cancel: CancelToken, tokens_read: Callable[[int], None]
) -> Iterator[Callable[[], None]]:
    """Check `cancel` whenever a layer stores keys and values.

    An instance attribute overrides ``update_and_fetch``, so the cache's class is unchanged.
    Discard a cache whose update was cancelled.

    Parameters
    ----------
    caches : list of KV caches, one per layer
    cancel : CancelToken
    tokens_read : callable
        Takes the number of tokens stored so far, once per chunk.

    Yields
    ------
    callable
        Removes the hooks. Call it after prefill: the decode loop checks `cancel` itself.

    Raises
    ------
    Cancelled
        From within the model's forward pass.
    """
    layers = [c for c in leaf_caches(caches) if hasattr(c, "update_and_fetch")]

    def hook(cache: Any, first: bool) -> None:
        original = cache.update_and_fetch

        def update_and_fetch(*args: Any, **kwargs: Any) -> Any:
            cancel.checkpoint()
            if first:
                tokens_read(int(getattr(cache, "offset", 0)))
            return original(*args, **kwargs)

        cache.update_and_fetch = update_and_fetch

    def remove_hooks() -> None:
        for cache in layers:
            cache.__dict__.pop("update_and_fetch", None)

    for index, cache in enumerate(layers):
        hook(cache, first=index == 0)
    try:
        yield remove_hooks
    finally:
        remove_hooks()


@contextlib.contextmanager
def replaced(obj: Any, name: str, value: Any) -> Iterator[None]:
    """Override a method by an instance attribute within this block."""
    setattr(obj, name, value)
    try:
        yield
    finally:
        delattr(obj, name)
