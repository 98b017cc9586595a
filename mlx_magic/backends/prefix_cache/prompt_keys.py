"""Prefix-cache keys of a prompt: a text token, or a position within a certain image."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_magic.backends.prefix_cache.fingerprints import Fingerprint, as_numpy
from mlx_magic.backends.prefix_cache.image_keys import TEXT, ImageKeys


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
