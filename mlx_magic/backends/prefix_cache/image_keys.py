"""Cache keys of a request's images, made from the processor's output."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_magic.backends.prefix_cache.fingerprints import Fingerprint, as_numpy, is_array

TEXT = ("input_ids", "mask", "attention_mask")
"""Inputs that belong to the text."""


@dataclass(frozen=True, slots=True)
class ImageKeys:
    """Fingerprints of a request's inputs other than its text.

    Attributes
    ----------
    whole : Fingerprint
        Fingerprint of all of them.
    rows : list of Fingerprint
        One per image (or tile), with the other inputs that belong to it; empty if the inputs
        cannot be split by image.
    patches : list of int
        Patches of each image, if the images are packed as patches; else empty.
    """

    whole: Fingerprint
    rows: list[Fingerprint]
    patches: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> ImageKeys | None:
        """Make the keys of a processor's output; None without images, or if one has no digest.

        Parameters
        ----------
        inputs : mapping
            Arrays that a GPU has not used yet: otherwise their numbers have to be fetched.
        """
        extra = {
            key: as_numpy(value) if is_array(value) else value
            for key, value in inputs.items()
            if key not in TEXT
        }
        try:
            if not extra:
                return None
            patches = _patches(extra)
            rows = _packed_rows(extra, patches) if patches else _rows(extra)
            return cls(Fingerprint(extra), rows, patches)
        except TypeError:
            return None

    def settle(self) -> None:
        """Settle the fingerprints in use, so that they no longer hold the pixels."""
        for fingerprint in (self.whole, *self.rows):
            if fingerprint.used:
                fingerprint.settle()


def _patches(extra: Mapping[str, Any]) -> list[int]:
    """Return the patches of each image of the Qwen-VL families, whose images are packed."""
    pixels: Any = extra.get("pixel_values")
    grid: Any = extra.get("image_grid_thw")
    if not is_array(pixels) or not is_array(grid) or len(pixels.shape) != 2:
        return []
    if len(grid.shape) != 2 or grid.shape[1] != 3:
        return []
    counts = [int(count) for count in grid.astype("int64").prod(axis=1)]
    return counts if min(counts, default=0) > 0 and sum(counts) == pixels.shape[0] else []


def _packed_rows(extra: Mapping[str, Any], patches: list[int]) -> list[Fingerprint]:
    pixels, grid = extra["pixel_values"], extra["image_grid_thw"]
    common = {k: v for k, v in extra.items() if k not in ("pixel_values", "image_grid_thw")}
    ends = list(itertools.accumulate(patches))
    return [
        Fingerprint(common, pixels[end - count : end], grid[at])
        for at, (count, end) in enumerate(zip(patches, ends, strict=True))
    ]


def _rows(extra: Mapping[str, Any]) -> list[Fingerprint]:
    pixels: Any = extra.get("pixel_values")
    shape = tuple(pixels.shape) if is_array(pixels) else ()
    if len(shape) == 5 and shape[0] == 1:
        count = shape[1]
    elif len(shape) == 4:
        count = shape[0]
    else:
        return []
    lead = shape[:-3]
    own = {
        key: value.reshape(count, *value.shape[len(lead) :])
        for key, value in extra.items()
        if is_array(value) and tuple(value.shape[: len(lead)]) == lead
    }
    common = {key: value for key, value in extra.items() if key not in own}
    return [
        Fingerprint(common, {key: value[row] for key, value in own.items()}) for row in range(count)
    ]
