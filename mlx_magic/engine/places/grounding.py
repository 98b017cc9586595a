"""What the coordinates in an answer depend on, besides its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Scale = float | Literal["pixels"]

MOST_SCALE = 1e9
"""A larger ``box_scale`` in a config.json is ignored, and a larger scale refused."""


@dataclass(frozen=True, slots=True)
class Grounding:
    """What is known about an answer's coordinates. A backend fills it, `data.places` reads it.

    Attributes
    ----------
    model_type : str
        Architecture, from the checkpoint's config.json.
    scale : float, "pixels" or None
        The number that stands for the right and the lower edge of the image: ``box_scale`` in
        config.json, or the one that a person named. "pixels" is the size in `seen`.
    dialect : str or None
        The dialect that a person named; None is that of the architecture.
    seen : tuple of (int, int)
        Width and height, in pixels, to which the processor resized each whole image of the
        question; empty if that is not known.
    cropped : bool
        Whether the processor cut a part off the images.
    earlier_images : int
        Images of earlier turns, which the answer may mean as well.
    marked : str
        The answer with the special tokens that mark places; empty if it had none.
    """

    model_type: str = ""
    scale: Scale | None = None
    dialect: str | None = None
    seen: tuple[tuple[int, int], ...] = ()
    cropped: bool = False
    earlier_images: int = 0
    marked: str = ""

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Grounding:
        """Return what a config.json says, which is untrusted.

        Parameters
        ----------
        config : mapping
            ``model_type``, and ``box_scale``: a checkpoint with this key writes places as plain
            JSON (see `data.places.dialects`).
        """
        scale: Any = config.get("box_scale")
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        known = float(scale) if is_number and 0 < scale < MOST_SCALE else None
        return cls(model_type=str(config.get("model_type", "")), scale=known)
