"""Every pixel format of Pillow -> RGB: by range where there are more bits, alpha on white."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WHITE = (255, 255, 255)


def to_rgb(image: Image.Image, *, ours: bool = False) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an RGB copy of a loaded image, and what the person should know about it.

    16-bit grey is scaled from its whole range (not clipped); 32-bit integers from 0..255 or
    0..65535 and floats from 0..1 or 0..255 if they fit in there, else from their own lowest to
    highest value, which is noted. Transparent parts become white.

    Parameters
    ----------
    image : PIL.Image.Image
        Any mode, loaded; stays as it is.
    ours : bool
        Whether nobody else has the image: RGB pixels then need no copy.

    Returns
    -------
    pixels : PIL.Image.Image
        RGB.
    notes : tuple of str

    Raises
    ------
    ValueError
        If there is no way from its mode to RGB, or it holds NaN.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return (_plain(image) if ours else image.copy()), ()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_grey(image)
    if image.mode == "LAB":
        return _from_lab(image), ()
    if image.has_transparency_data:
        return _on_white(image), ()
    return image.convert("RGB"), ()


def _plain(image: Image.Image) -> Image.Image:
    """Return an image of the same pixels in memory, without the file that they came from."""
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


def _deep_grey(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    import numpy as np

    values = np.asarray(image)
    notes: tuple[str, ...] = ()
    if image.mode.startswith("I;16"):
        grey = sixteen_to_eight(values)
    else:
        grey, notes = _fit_range(values.astype(np.float64), floats=image.mode == "F")
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB"), notes


def sixteen_to_eight(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Scale 0..65535 to 0..255, rounded to the nearest."""
    import numpy as np

    scaled: NDArray[np.uint8] = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return scaled


def _fit_range(
    values: NDArray[np.float64], *, floats: bool
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    import numpy as np

    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    low, high = float(values.min()), float(values.max())
    notes: tuple[str, ...] = ()
    if low >= 0 and high <= 1 and floats:
        top = 1.0
    elif low >= 0 and high <= 255:
        top = 255.0
    elif low >= 0 and high <= 65535 and not floats:
        top = 65535.0
    else:
        notes = (f"values {low:g} to {high:g} stretched to black to white",)
        values, top = values - low, (high - low) or 1.0
    return np.rint(values * (255.0 / top)).astype(np.uint8), notes
