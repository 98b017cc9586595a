"""The pictures of a request, as its processor made them, by what they can be known again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_magic.backends.prefix_cache.fingerprints import Fingerprint, as_numpy, is_array

TEXT = ("input_ids", "mask", "attention_mask")
"""Inputs that belong to the words."""


@dataclass(frozen=True, slots=True)
class ImageKeys:
    """What belongs to a request beside its words.

    Attributes
    ----------
    whole : Fingerprint
        Of all of it.
    rows : list of Fingerprint
        One for each picture (or tile), with what else belongs to it; empty where they
        cannot be told apart.
    """

    whole: Fingerprint
    rows: list[Fingerprint]

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> ImageKeys | None:
        """Find them in a processor's output; None without any, or where one cannot be known.

        Parameters
        ----------
        inputs : mapping
            Arrays that no GPU has touched: of one that has, the numbers must be fetched.
        """
        extra = {
            key: as_numpy(value) if is_array(value) else value
            for key, value in inputs.items()
            if key not in TEXT
        }
        try:
            return cls(Fingerprint(extra), _rows(extra)) if extra else None
        except TypeError:
            return None

    def settle(self) -> None:
        """Let go of the pixels: what is kept under these names needs them no longer."""
        for fingerprint in (self.whole, *self.rows):
            if fingerprint.used:
                fingerprint.settle()


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
