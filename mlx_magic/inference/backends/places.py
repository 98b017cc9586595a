"""What stands at each place of a prompt: a word's token, or a part of one certain picture."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_magic.inference.backends.digests import digest, is_array

TEXT = ("input_ids", "mask", "attention_mask")
"""Inputs that belong to the words."""


@dataclass(frozen=True, slots=True)
class Places:
    """What stands at each place of a prompt.

    Attributes
    ----------
    held : list
    mark : bytes or None
        What each place carries, where pictures and places cannot be told apart.
    """

    held: list[Hashable]
    mark: bytes | None = None

    def then(self, tokens: list[int]) -> list[Hashable]:
        """Return the places with words after them."""
        mark = self.mark
        return self.held + [token if mark is None else (mark, token) for token in tokens]


def places(inputs: Mapping[str, Any], image_token: int | None) -> Places | None:
    """Tell each place of a prompt from what could stand there in another prompt.

    Two prompts whose places are equal up to some point are read alike up to there. A
    place of a picture is its digest and the place's number within it, where it is clear
    which picture stands where: as many runs of image tokens, all of one length, as the
    processor made pictures (or tiles). Elsewhere each place, words included, carries
    the digest of all the pictures: then only the same pictures match.

    Parameters
    ----------
    inputs : mapping
        The processor's output; ``input_ids`` of shape (1, tokens).
    image_token : int or None
        The token that stands for pictures.

    Returns
    -------
    Places or None
        One for each token; None where it is not known what belongs to the prompt.
    """
    tokens = [int(token) for token in inputs["input_ids"].reshape(-1).tolist()]
    seen = {key: value for key, value in inputs.items() if key not in TEXT}
    pixels = seen.get("pixel_values")
    if pixels is None:
        return Places(list(tokens)) if not seen else _marked(tokens, seen)
    if image_token is None or image_token not in tokens:
        return None
    runs = [len(list(run)) for token, run in itertools.groupby(tokens) if token == image_token]
    pictures = _rows(pixels)
    if len(set(runs)) != 1 or len(runs) != pictures:
        return _marked(tokens, seen)
    try:
        digests = _row_digests(seen, pictures)
    except TypeError:
        return None
    within = ((name, at) for name in digests for at in range(runs[0]))
    return Places([next(within) if token == image_token else token for token in tokens])


def _marked(tokens: list[int], seen: Mapping[str, Any]) -> Places | None:
    try:
        mark = digest(dict(seen))
    except TypeError:
        return None
    return Places(Places([], mark).then(tokens), mark)


def _rows(pixels: Any) -> int:
    """Count the pictures of (pictures, 3, H, W) or (1, pictures, 3, H, W); 0 elsewhere."""
    shape = tuple(pixels.shape) if is_array(pixels) else ()
    if len(shape) == 4:
        return int(shape[0])
    return int(shape[1]) if len(shape) == 5 and shape[0] == 1 else 0


def _row_digests(seen: Mapping[str, Any], pictures: int) -> list[bytes]:
    """Return a digest of each picture, with what else belongs to it."""
    lead = tuple(seen["pixel_values"].shape[:-3])
    own = {
        key: value.reshape(pictures, *value.shape[len(lead) :])
        for key, value in seen.items()
        if is_array(value) and tuple(value.shape[: len(lead)]) == lead
    }
    common = digest({key: value for key, value in seen.items() if key not in own})
    return [
        digest(common, {key: value[row] for key, value in own.items()}) for row in range(pictures)
    ]
