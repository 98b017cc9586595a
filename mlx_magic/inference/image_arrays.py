"""Arrays of numbers -> Pillow images: what each axis means, and which range is white."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from PIL import Image

from mlx_magic.errors import ImageDecodeError
from mlx_magic.inference.image_limits import MAX_IMAGES, check_pixels
from mlx_magic.inference.image_modes import sixteen_to_eight

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHANNELS = (1, 3, 4)
# Filters overshoot a little: such values are clipped, larger ones are refused.
_OVERSHOOT = 0.001


def array_to_images(array: NDArray[Any], label: str) -> list[tuple[Image.Image, tuple[str, ...]]]:
    """Turn an array into one image, or a batch into several.

    Shapes are HxW, HxWxC or NxHxWxC with 1, 3 (RGB) or 4 (RGBA) channels; channels may also
    come first where the last axis is no channel axis and H and W are over 4, which is noted.
    bool is black and white, uint8 is taken as it is, uint16 is scaled from 0..65535. Other
    integers must be 0..255. Floats must be 0..1, or 0..255 (noted) if the highest is 2 or more.

    Parameters
    ----------
    array : numpy.ndarray
    label : str
        How the person named it, for messages.

    Returns
    -------
    list of tuple
        Pillow image (L, RGB or RGBA) and notes for each picture.

    Raises
    ------
    ImageDecodeError
        If shape, type or values are not those of a picture.
    ImageTooLargeError
        If one picture has more pixels than allowed.
    """
    import numpy as np

    batch, channel_first = _as_batch(array, label)
    height, width = batch.shape[1:3]
    check_pixels((width, height), label)
    if len(batch) > MAX_IMAGES:
        _refuse(
            label,
            f"is a batch of {len(batch)} pictures: give at most {MAX_IMAGES}, "
            f"like x[:{MAX_IMAGES}]",
        )
    pixels, notes = _to_bytes(batch, label)
    if channel_first:
        notes = (f"channel-first array {_shape(array.shape)}", *notes)
    if pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    return [(Image.fromarray(np.ascontiguousarray(picture)), notes) for picture in pixels]


def _as_batch(array: NDArray[Any], label: str) -> tuple[NDArray[Any], bool]:
    """Return the array as N x H x W x C, and whether its channels came first."""
    shape = array.shape
    if array.ndim not in (2, 3, 4):
        _refuse(label, f"has the shape {_shape(shape)}: a picture is HxW, HxWx3 or HxWx4")
    if 0 in shape:
        _refuse(label, f"has the shape {_shape(shape)}: there are no pixels in it")
    if array.ndim == 2:
        return array[None, :, :, None], False
    batch = array if array.ndim == 4 else array[None]
    if batch.shape[3] in _CHANNELS:
        return batch, False
    if batch.shape[1] in _CHANNELS and min(batch.shape[2:]) > 4:
        return batch.transpose(0, 2, 3, 1), True
    advice = "a picture is HxW, HxWx3 or HxWx4"
    if array.ndim == 3:
        advice += "; several grey ones are list(x)"
    _refuse(label, f"has the shape {_shape(shape)}: {advice}")


def _to_bytes(values: NDArray[Any], label: str) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Scale values to 0..255, by the type or by the range that a whole batch fits in."""
    import numpy as np

    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255), ()
    if kind == "u" and size == 1:
        return values.astype(np.uint8), ()
    if kind == "u" and size == 2:
        dark = int(values.max()) <= 255
        note = "16-bit values all under 256: nearly black; for 8-bit values use x.astype('uint8')"
        return sixteen_to_eight(values), (note,) if dark else ()
    if kind in "iu":
        return _from_integers(values, label), ()
    if kind == "f":
        return _from_floats(values, label)
    _refuse(label, f"holds {values.dtype} values: use uint8, or floats from 0 to 1")


def _from_integers(values: NDArray[Any], label: str) -> NDArray[np.uint8]:
    import numpy as np

    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        _refuse(
            label,
            f"holds integers from {low} to {high}: scale them to 0..255, "
            "or use uint16 for 0..65535",
        )
    pixels: NDArray[np.uint8] = values.astype(np.uint8)
    return pixels


def _from_floats(values: NDArray[Any], label: str) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    import numpy as np

    low, high = float(values.min()), float(values.max())
    notes: tuple[str, ...] = ()
    if not (np.isfinite(low) and np.isfinite(high)):
        _refuse(label, "holds NaN or infinity: replace them, for example with np.nan_to_num(x)")
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        top = 1.0
    elif low >= 0 and 2 <= high <= 255:
        top, notes = 255.0, ("floats read as 0..255",)
    else:
        _refuse(
            label,
            f"holds floats from {low:g} to {high:g}: scale them to 0..1 (or to "
            "0..255), for example with (x - x.min()) / np.ptp(x), or np.clip(x, 0, 1)",
        )
    # float16 cannot hold 255 times everything; float32 is exact enough for 8 bits.
    scaled = np.clip(values.astype(np.float32) * np.float32(255.0 / top), 0, 255)
    return np.rint(scaled).astype(np.uint8), notes


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _refuse(label: str, why: str) -> NoReturn:
    raise ImageDecodeError(f"{label} {why}.", source=label)
