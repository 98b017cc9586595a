"""Converts all modes of Pillow to RGB: scales deep values, and puts transparency on white."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WHITE = (255, 255, 255)
# Maximum number of pixels that are converted at a time.
_SLICE_PIXELS = 1_000_000


def to_rgb(
    image: Image.Image, *, owned: bool = False, checkpoint: Callable[[], None] | None = None
) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an RGB copy of a loaded image, and notes for the user.

    16-bit gray is scaled from its whole range (not clipped). 32-bit integers are scaled from
    0..255 or 0..65535, and floats from 0..1 or 0..255, if they are in that range; otherwise from
    their lowest to highest value, which is noted. Transparent parts become white.

    Parameters
    ----------
    image : PIL.Image.Image
        A loaded image of any mode; it is not changed.
    owned : bool
        Whether no other code uses the image. RGB pixels are then not copied.
    checkpoint : callable, optional
        Called between slices of deep gray images; may raise.

    Returns
    -------
    pixels : PIL.Image.Image
        RGB.
    notes : tuple of str

    Raises
    ------
    ValueError
        If the mode cannot be converted to RGB, or a value is NaN or infinite.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return (_plain(image) if owned else image.copy()), ()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_gray(image, checkpoint or (lambda: None))
    if image.mode == "LAB":
        return _from_lab(image), ()
    if image.has_transparency_data:
        return _on_white(image), ()
    return image.convert("RGB"), ()


def _plain(image: Image.Image) -> Image.Image:
    """Return an image with the same pixel memory, without a reference to the file."""
    new = getattr(image, "_new", None)
    return new(image.im) if new is not None and not image.readonly else image.copy()


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", layer.size, WHITE)
    flat.paste(layer, mask=layer.getchannel("A"))
    return flat


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    transform = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise ValueError("no conversion from LAB")
    return converted


def _deep_gray(
    image: Image.Image, checkpoint: Callable[[], None]
) -> tuple[Image.Image, tuple[str, ...]]:
    """Scale in slices, since a large image would take gigabytes as float64."""
    import numpy as np

    scale: Callable[[NDArray[Any]], NDArray[np.uint8]] = sixteen_to_eight
    notes: tuple[str, ...] = ()
    if not image.mode.startswith("I;16"):
        low, high = _range(image, checkpoint)
        scale, notes = _fit_range(low, high, floats=image.mode == "F")
    transparent = image.info.get("transparency")
    gray = Image.new("L", image.size)
    for box in _slices(image.size):
        checkpoint()
        values = np.asarray(image.crop(box))
        part = scale(values)
        if isinstance(transparent, int):
            part = np.where(values == transparent, np.uint8(255), part)
        gray.paste(Image.fromarray(part), box)
    return gray.convert("RGB"), notes


def _slices(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes with a bounded number of pixels, which may be parts of a row."""
    width, height = size
    across = min(width, _SLICE_PIXELS)
    down = max(1, _SLICE_PIXELS // across)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)


def _range(image: Image.Image, checkpoint: Callable[[], None]) -> tuple[float, float]:
    """Return the lowest and the highest value.

    Raises
    ------
    ValueError
        If one is NaN or infinite.
    """
    import numpy as np

    lows: list[float] = []
    highs: list[float] = []
    for box in _slices(image.size):
        checkpoint()
        values = np.asarray(image.crop(box))
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinity")
        lows.append(float(values.min()))
        highs.append(float(values.max()))
    return min(lows), max(highs)


def sixteen_to_eight(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Scale 0..65535 to 0..255, with rounding to the nearest."""
    import numpy as np

    scaled: NDArray[np.uint8] = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return scaled


def _fit_range(
    low: float, high: float, *, floats: bool
) -> tuple[Callable[[NDArray[Any]], NDArray[np.uint8]], tuple[str, ...]]:
    import numpy as np

    notes: tuple[str, ...] = ()
    base = 0.0
    if low >= 0 and high <= 1 and floats:
        top = 1.0
    elif low >= 0 and high <= 255:
        top = 255.0
    elif low >= 0 and high <= 65535 and not floats:
        top = 65535.0
    else:
        notes = (f"values {low:g} to {high:g} stretched to black to white",)
        base, top = low, (high - low) or 1.0

    def scale(values: NDArray[Any]) -> NDArray[np.uint8]:
        wide = values.astype(np.float64)
        return np.rint((wide - base) * (255.0 / top)).astype(np.uint8)

    return scale, notes
