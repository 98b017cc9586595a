"""Converts arrays to Pillow images: the meaning of axes and the range of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from PIL import Image

from mlx_magic.errors import ImageDecodeError
from mlx_magic.formatting import short_label
from mlx_magic.images.color_modes import sixteen_to_eight
from mlx_magic.images.limits import MAX_IMAGES, check_pixels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    _Scale = Callable[[NDArray[Any]], NDArray[np.uint8]]

_CHANNELS = (1, 3, 4)
# Filters overshoot slightly: values beyond the range by this much are clipped, others refused.
_OVERSHOOT = 0.001
# Maximum number of values that are converted at a time.
_SLICE_VALUES = 4_000_000


@dataclass(slots=True)
class ArrayImages:
    """The images of an array, converted one at a time on request.

    An array may be far larger than its memory: `numpy.broadcast_to` makes 100 GB of one byte. So
    no copy of the whole array is made.
    """

    label: str
    batch: NDArray[Any]
    note: tuple[str, ...]
    _range: tuple[float, float] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.batch)

    def image_at(
        self, index: int, checkpoint: Callable[[], None]
    ) -> tuple[Image.Image, tuple[str, ...]]:
        """Return an image as a new Pillow image (L, RGB or RGBA), and notes.

        Parameters
        ----------
        index : int
        checkpoint : callable
            Called between slices; may raise.

        Raises
        ------
        ImageDecodeError
            If the type or the values are not those of an image.
        """
        import numpy as np

        scale, notes = self._scale(checkpoint)
        values = self.batch[index]
        pixels = np.empty(values.shape, np.uint8)
        for part in _slices(values):
            checkpoint()
            pixels[part] = scale(values[part])
        if pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        return Image.fromarray(pixels), (*self.note, *notes)

    def _scale(self, checkpoint: Callable[[], None]) -> tuple[_Scale, tuple[str, ...]]:
        """Return the conversion to 0..255, by the type or the range of the whole batch."""
        import numpy as np

        kind, size = self.batch.dtype.kind, self.batch.dtype.itemsize
        if kind == "b":
            return (lambda values: values.astype(np.uint8) * np.uint8(255)), ()
        if kind == "u" and size == 1:
            return (lambda values: values.astype(np.uint8)), ()
        if kind not in "iuf":
            _refuse(
                self.label, f"holds {_type(self.batch)} values: use uint8, or floats from 0 to 1"
            )
        if self._range is None:
            self._range = _lowest_and_highest(self.batch, checkpoint)
        low, high = self._range
        if kind == "u" and size == 2:
            note = (
                "16-bit values all under 256: nearly black; for 8-bit values use x.astype('uint8')"
            )
            return sixteen_to_eight, (note,) if high <= 255 else ()
        if kind in "iu":
            return _from_integers(low, high, self.label), ()
        return _from_floats(low, high, self.label)


def array_images(array: NDArray[Any], label: str) -> ArrayImages:
    """Interpret an array as one image, or a batch as several.

    Shapes are HxW, HxWxC or NxHxWxC with 1, 3 (RGB) or 4 (RGBA) channels. Channels may also come
    first, if the last axis cannot be a channel axis and H and W are over 4; this is noted. bool
    is black and white, uint8 is unchanged, uint16 is scaled from 0..65535. Other integers must be
    0..255. Floats must be 0..1, or 0..255 (noted) if the highest is 2 or more.

    Parameters
    ----------
    array : numpy.ndarray
    label : str
        The name given by the user, for messages.

    Raises
    ------
    ImageDecodeError
        If the shape is not that of an image, or there are too many images.
    ImageTooLargeError
        If one image has too many pixels.
    """
    batch, channel_first = _as_batch(array, label)
    height, width = batch.shape[1:3]
    check_pixels((width, height), label)
    if len(batch) > MAX_IMAGES:
        _refuse(
            label,
            f"is a batch of {len(batch)} images: give at most {MAX_IMAGES}, like x[:{MAX_IMAGES}]",
        )
    if batch.dtype.kind not in "biuf":
        _refuse(label, f"holds {_type(batch)} values: use uint8, or floats from 0 to 1")
    return ArrayImages(
        label, batch, (f"channel-first array {_shape(array.shape)}",) if channel_first else ()
    )


def _slices(values: NDArray[Any]) -> Iterator[tuple[slice, slice]]:
    """Yield slices with a bounded number of values, which may be parts of a row."""
    height, width, channels = values.shape
    across = min(width, _SLICE_VALUES // channels)
    down = max(1, _SLICE_VALUES // (across * channels))
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield slice(top, top + down), slice(left, left + across)


def _lowest_and_highest(batch: NDArray[Any], checkpoint: Callable[[], None]) -> tuple[float, float]:
    """Return the range of all values; NaN if a value is NaN."""
    import numpy as np

    lows: list[Any] = []
    highs: list[Any] = []
    for values in batch:
        for part in _slices(values):
            checkpoint()
            lows.append(values[part].min())
            highs.append(values[part].max())
    low, high = np.min(lows), np.max(highs)
    return (low.item(), high.item()) if batch.dtype.itemsize <= 8 else (float(low), float(high))


def _as_batch(array: NDArray[Any], label: str) -> tuple[NDArray[Any], bool]:
    """Return the array as N x H x W x C, and whether its channels came first."""
    shape = array.shape
    if array.ndim not in (2, 3, 4):
        _refuse(label, f"has the shape {_shape(shape)}: an image is HxW, HxWx3 or HxWx4")
    if 0 in shape:
        _refuse(label, f"has the shape {_shape(shape)}: there are no pixels in it")
    if array.ndim == 2:
        return array[None, :, :, None], False
    batch = array if array.ndim == 4 else array[None]
    if batch.shape[3] in _CHANNELS:
        return batch, False
    if batch.shape[1] in _CHANNELS and min(batch.shape[2:]) > 4:
        return batch.transpose(0, 2, 3, 1), True
    advice = "an image is HxW, HxWx3 or HxWx4"
    if array.ndim == 3:
        advice += "; for several grayscale images use list(x)"
    _refuse(label, f"has the shape {_shape(shape)}: {advice}")


def _from_integers(low: float, high: float, label: str) -> _Scale:
    import numpy as np

    if low < 0 or high > 255:
        _refuse(
            label,
            f"holds integers from {low} to {high}: scale them to 0..255, "
            "or use uint16 for 0..65535",
        )
    return lambda values: values.astype(np.uint8)


def _from_floats(low: float, high: float, label: str) -> tuple[_Scale, tuple[str, ...]]:
    import numpy as np

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

    def scale(values: NDArray[Any]) -> NDArray[np.uint8]:
        # float16 could overflow; float32 is exact enough for 8 bits.
        scaled = np.clip(values.astype(np.float32) * np.float32(255.0 / top), 0, 255)
        rounded: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
        return rounded

    return scale, notes


def _type(array: NDArray[Any]) -> str:
    """Return the name of the dtype, shortened: that of a structured one may be very long."""
    return short_label(str(array.dtype), 40)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _refuse(label: str, why: str) -> NoReturn:
    raise ImageDecodeError(f"{label} {why}.", source=label)
