"""Sizes at which a model sees the images, read from the processor's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def seen_sizes(inputs: Mapping[str, Any], count: int, patch: int) -> tuple[str, ...]:
    """Return for each image the size at which the model sees it.

    Parameters
    ----------
    inputs : mapping
        The processor's output: ``pixel_values`` of shape (images, 3, H, W) or
        (1, tiles, 3, H, W), also with channels last, or a list of such arrays; or packed
        patches with ``image_grid_thw`` of shape (images, 3).
    count : int
        Number of images.
    patch : int
        Side of a patch in pixels, for packed patches.

    Returns
    -------
    tuple of str
        Such as ``"128 x 128"`` or ``"5 tiles of 384 x 384"``; empty if the shapes do not
        tell.
    """
    grid = inputs.get("image_grid_thw")
    if grid is not None and len(grid) == count:
        rows = [[int(n) for n in row] for row in grid.tolist()]
        return tuple(f"{w * patch} x {h * patch}" for _, h, w in rows)
    pixels = inputs.get("pixel_values")
    if isinstance(pixels, list | tuple):
        shapes = [tuple(p.shape) for p in pixels if hasattr(p, "shape")]
        return tuple(_size(shape) for shape in shapes) if len(shapes) == count else ()
    shape = tuple(getattr(pixels, "shape", ()))
    if len(shape) not in (4, 5):
        return ()
    tiles = shape[0] if len(shape) == 4 else shape[0] * shape[1]
    if count == 0 or tiles % count:
        return ()
    each = tiles // count
    size = _size(shape)
    return (size if each == 1 else f"{each} tiles of {size}",) * count


def fewer_tokens(inputs: Mapping[str, Any], patch: int, tokens: int, max_pixels: int) -> int | None:
    """Return how many image tokens there would be if images had at most `max_pixels` pixels.

    Parameters
    ----------
    inputs : mapping
        The processor's output.
    patch : int
        Side of a patch in pixels.
    tokens : int
        Image tokens now.
    max_pixels : int

    Returns
    -------
    int or None
        None unless the model's tokens follow the size of the image: then the processor gives an
        ``image_grid_thw``.
    """
    grid = inputs.get("image_grid_thw")
    if grid is None:
        return None
    patches = [(int(t), int(h) * int(w)) for t, h, w in grid.tolist()]
    now = sum(t * area for t, area in patches)
    most = max_pixels // patch**2
    return tokens * sum(t * min(area, most) for t, area in patches) // max(now, 1)


def _size(shape: tuple[int, ...]) -> str:
    channels_last = shape[-1] in (1, 3) and shape[-3] not in (1, 3)
    height, width = shape[-3:-1] if channels_last else shape[-2:]
    return f"{width} x {height}"
