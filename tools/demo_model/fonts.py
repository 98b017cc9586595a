"""Find the fonts that text is printed in: DejaVu, from matplotlib, and Pillow's own Aileron."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

AILERON = "Aileron"
NAMES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", AILERON)


@lru_cache(maxsize=1)
def font_folder() -> Path:
    """Return the folder with DejaVu's files.

    The environment variable ``DEMO_MODEL_FONTS`` names it where matplotlib is not installed.
    """
    named = os.environ.get("DEMO_MODEL_FONTS")
    if named:
        return Path(named)
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=4096)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font by name and size.

    Parameters
    ----------
    name
        One of ``NAMES``.
    size
        Height in pixels.
    """
    if name == AILERON:
        loaded = ImageFont.load_default(size)
        if not isinstance(loaded, ImageFont.FreeTypeFont):
            raise RuntimeError("Pillow was built without FreeType, so it has no scalable font.")
        return loaded
    return ImageFont.truetype(str(font_folder() / f"{name}.ttf"), size)
