"""What stands at each place of a prompt: a word's token, or a part of one certain picture."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_magic.backends.prefix_cache.fingerprints import Fingerprint, as_numpy
from mlx_magic.backends.prefix_cache.image_keys import TEXT, ImageKeys


@dataclass(frozen=True, slots=True)
class PromptKeys:
    """What stands at each place of a prompt.

    Attributes
    ----------
    keys : list
    mark : Fingerprint or None
        What each place carries, where pictures and places cannot be told apart.
    fingerprints : tuple of Fingerprint
        All that are in them.
    """

    keys: list[Hashable]
    mark: Fingerprint | None = None
    fingerprints: tuple[Fingerprint, ...] = ()

    def followed_by(self, tokens: list[int]) -> list[Hashable]:
        """Return the places with words after them."""
        mark = self.mark
        return self.keys + [token if mark is None else (mark, token) for token in tokens]


def prompt_keys_of(
    inputs: Mapping[str, Any], image_token: int | None, image_keys: ImageKeys | None
) -> PromptKeys | None:
    """Tell each place of a prompt from what could stand there in another prompt.

    Two prompts whose places are equal up to some point are read alike up to there. A
    place of a picture is its fingerprint and the place's number within it, where it is clear
    which picture stands where: as many runs of image tokens, all of one length, as the
    processor made pictures (or tiles). Elsewhere each place, words included, carries
    the fingerprint of all of them: then only the same pictures match.

    Parameters
    ----------
    inputs : mapping
        The processor's output; ``input_ids`` of shape (1, tokens).
    image_token : int or None
        The token that stands for pictures.
    image_keys : ImageKeys or None
        What belongs to the prompt beside its words.

    Returns
    -------
    Places or None
        One for each token; None where it is not known what belongs to the prompt.
    """
    tokens = [int(token) for token in as_numpy(inputs["input_ids"]).reshape(-1)]
    if image_keys is None:
        return None if any(key not in TEXT for key in inputs) else PromptKeys(list(tokens))
    if inputs.get("pixel_values") is None:
        return _marked(tokens, image_keys.whole)
    if image_token is None or image_token not in tokens:
        return None
    runs = [len(list(run)) for token, run in itertools.groupby(tokens) if token == image_token]
    if len(set(runs)) != 1 or len(runs) != len(image_keys.rows):
        return _marked(tokens, image_keys.whole)
    within = ((fingerprint, at) for fingerprint in image_keys.rows for at in range(runs[0]))
    found: list[Hashable] = [next(within) if token == image_token else token for token in tokens]
    return PromptKeys(found, fingerprints=tuple(image_keys.rows))


def _marked(tokens: list[int], mark: Fingerprint) -> PromptKeys:
    return PromptKeys(PromptKeys([], mark).followed_by(tokens), mark, (mark,))
