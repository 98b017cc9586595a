"""Cache keys: of a request's images, from the processor's output, and of a prompt.

The key of a prompt's token is the token itself, or a position within a certain image.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
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


@dataclass(frozen=True, slots=True)
class PromptKeys:
    """Prefix-cache keys of a prompt.

    Attributes
    ----------
    keys : list
        One per token.
    mark : Fingerprint or None
        Part of every key, if it is unclear which tokens belong to which image.
    fingerprints : tuple of Fingerprint
        All fingerprints in `keys`.
    """

    keys: list[Hashable]
    mark: Fingerprint | None = None
    fingerprints: tuple[Fingerprint, ...] = ()

    def followed_by(self, tokens: list[int]) -> list[Hashable]:
        """Return the keys with those of further text tokens after them."""
        mark = self.mark
        return self.keys + [token if mark is None else (mark, token) for token in tokens]


def prompt_keys_of(
    inputs: Mapping[str, Any], image_token: int | None, image_keys: ImageKeys | None
) -> PromptKeys | None:
    """Return the prefix-cache keys of a prompt.

    Two prompts have the same keys and values as far as their cache keys are equal. The key of an
    image token is the image's fingerprint and the token's position within the image. That needs
    as many runs of image tokens as the processor made images (or tiles), all of one length, or in
    proportion to the patches of the images.
    Otherwise every key, of text tokens too, includes the fingerprint of all images, so that only
    prompts with the same images match.

    Parameters
    ----------
    inputs : mapping
        The processor's output; ``input_ids`` of shape (1, tokens).
    image_token : int or None
        The token that stands for images.
    image_keys : ImageKeys or None
        Keys of the inputs other than text.

    Returns
    -------
    PromptKeys or None
        None if the prompt has inputs without a key, so that it must not be cached.
    """
    tokens = [int(token) for token in as_numpy(inputs["input_ids"]).reshape(-1)]
    if image_keys is None:
        return None if any(key not in TEXT for key in inputs) else PromptKeys(list(tokens))
    if inputs.get("pixel_values") is None:
        return _marked(tokens, image_keys.whole)
    if image_token is None or image_token not in tokens:
        return None
    runs = [len(list(run)) for token, run in itertools.groupby(tokens) if token == image_token]
    if len(runs) != len(image_keys.rows) or not _are_images(runs, image_keys.patches):
        return _marked(tokens, image_keys.whole)
    within = iter(
        [
            (fingerprint, at)
            for fingerprint, length in zip(image_keys.rows, runs, strict=True)
            for at in range(length)
        ]
    )
    found: list[Hashable] = [next(within) if token == image_token else token for token in tokens]
    return PromptKeys(found, fingerprints=tuple(image_keys.rows))


def _are_images(runs: list[int], patches: list[int]) -> bool:
    """Whether runs of image tokens can stand for one image each."""
    if not patches:
        return len(set(runs)) == 1
    return all(
        run * patches[0] == runs[0] * count for run, count in zip(runs, patches, strict=True)
    )


def _marked(tokens: list[int], mark: Fingerprint) -> PromptKeys:
    return PromptKeys(PromptKeys([], mark).followed_by(tokens), mark, (mark,))
