"""The dialects in which models write places: one table, each with its source.

Architectures that are not in the table give no boxes: numbers of an unknown meaning would give
wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mlx_magic.data.places import written
from mlx_magic.data.places.written import Written
from mlx_magic.engine.places.grounding import Scale


@dataclass(frozen=True, slots=True)
class Dialect:
    """A way to write places.

    Attributes
    ----------
    name : str
        For ``result.with_dialect``.
    read : callable
        Takes the answer and the prompt, and yields the places.
    scale : float, "pixels" or None
        The number that stands for the right and the lower edge of the whole image; "pixels" are
        those of the image that the processor made; None has to be named.
    architectures : tuple of str
        The ``model_type`` of config.json.
    source : str
        Where the dialect is described.
    verified : bool
        Whether answers of real weights were compared with the images.
    offset : float
        Added to each number: 0.5 if the numbers count bins, whose middle is meant.
    """

    name: str
    read: Callable[[str, str], Iterator[Written]]
    scale: Scale | None
    architectures: tuple[str, ...]
    source: str
    verified: bool = False
    offset: float = 0.0


DIALECTS = (
    Dialect(
        "qwen2_vl",
        written.qwen2,
        1000,
        ("qwen2_vl",),
        "Qwen2-VL (arXiv 2409.12191), page 7: corners as text between special tokens, normalized "
        "to [0, 1000)",
    ),
    Dialect(
        "qwen2_5_vl",
        written.qwen_json,
        "pixels",
        ("qwen2_5_vl",),
        "Qwen2.5-VL (arXiv 2502.13923), and issue 931 of QwenLM/Qwen3-VL: pixels of the resized "
        "image, whose size is image_grid_thw times the patch size",
    ),
    Dialect(
        "qwen3_vl",
        written.qwen_json,
        1000,
        ("qwen3_vl", "qwen3_vl_moe"),
        "2D grounding cookbook of QwenLM/Qwen3-VL: relative coordinates from 0 to 1000",
    ),
    Dialect(
        "paligemma",
        written.paligemma,
        1024,
        ("paligemma",),
        "PaliGemma (arXiv 2407.07726), and paligemma_parse.py of the space big-vision/paligemma "
        "on the Hub: y1 x1 y2 x2 over 1024",
    ),
    Dialect(
        "florence2",
        written.florence,
        1000,
        ("florence2",),
        "Florence-2 (arXiv 2311.06242), and Florence2PostProcessor of transformers: x1 y1 x2 y2 "
        "in 1,000 bins, whose middle is meant",
        offset=0.5,
    ),
    Dialect(
        "molmo",
        written.molmo,
        100,
        ("molmo",),
        "Molmo (arXiv 2409.17146), and discussion 1 of allenai/Molmo-7B-O-0924 on the Hub: percent "
        "of the width and of the height",
    ),
    Dialect(
        "molmo2",
        written.molmo2,
        1000,
        ("molmo2",),
        "Model card of allenai/Molmo2-8B: number of the image, then number, x and y of each "
        "point, from 0 to 1000",
    ),
    Dialect(
        "json",
        written.plain_json,
        None,
        (),
        "The keys of Qwen's cookbooks (bbox_2d, point_2d), or x1, y1, x2, y2; the scale is "
        "box_scale in config.json, or that of result.with_dialect",
    ),
)

BY_NAME = {dialect.name: dialect for dialect in DIALECTS}
_BY_ARCHITECTURE = {name: dialect for dialect in DIALECTS for name in dialect.architectures}


def of_architecture(model_type: str) -> Dialect | None:
    """Return the dialect of an architecture, or None."""
    return _BY_ARCHITECTURE.get(model_type)
