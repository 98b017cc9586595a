"""Converts arrays to Pillow images: the meaning of axes and the range of values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from PIL import Image

from mlx_magic.errors import ImageDecodeError
from mlx_magic.formatting import short_label
from mlx_magic.images.color_modes import NEARLY_BLACK
from mlx_magic.images.limits import MAX_IMAGES, check_pixels
from mlx_magic.images.value_range import (
    DEPTHS,
    Levels,
    ValueRange,
    float_levels,
    integer_levels,
    of_top,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHANNELS = (1, 3, 4)
_DARK_MASK = "uint8 values all 0 and 1: nearly black; for a mask use x.astype(bool)"
# Maximum number of values that are converted at a time.
_SLICE_VALUES = 4_000_000


class FrameGroup:
    """Arrays that are parts of one array, such as the frames of a stack: they share one range.

    Otherwise a dark frame would be as bright as its neighbors.
    """

    def __init__(self) -> None:
        self.members: list[ArrayImages] = []
        self._range: ValueRange | None = None

    def range(self, checkpoint: Callable[[], None]) -> ValueRange:
        """Return the range of all members, computed once."""
        if self._range is None:
            ranges = [ValueRange.of(_parts(each.colors, checkpoint)) for each in self.members]
            self._range = ValueRange.union(ranges)
        return self._range


@dataclass(slots=True)
class ArrayImages:
    """The images of an array, converted one at a time on request.

    An array may be far larger than its memory: `numpy.broadcast_to` makes 100 GB of one byte. So
    no copy of the whole array is made.

    Attributes
    ----------
    label : str
    batch : numpy.ndarray
        N x H x W x C.
    note : tuple of str
    normalize : bool
        False keeps the numbers; see `array_images`.
    group : FrameGroup
    """

    label: str
    batch: NDArray[Any]
    note: tuple[str, ...]
    normalize: bool = True
    group: FrameGroup = field(default_factory=FrameGroup)
    _levels: tuple[Levels, Levels] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def colors(self) -> NDArray[Any]:
        """The values without an alpha channel."""
        return self.batch[..., :3] if self.batch.shape[3] == 4 else self.batch

    def changed_by_normalize(self, checkpoint: Callable[[], None]) -> bool:
        """Return whether `normalize` makes a difference for these values."""
        kind, size = self.batch.dtype.kind, self.batch.dtype.itemsize
        if kind == "b" or (kind == "u" and size == 1):
            return False
        values = self.group.range(checkpoint)
        if kind == "f":
            return not values.finite
        deepest = 2 ** DEPTHS[-2]
        return values.high < deepest if kind == "u" and size == 2 else not 1 < values.high <= 255

    def take(self) -> None:
        """Copy the values, which the user's code may change from now on."""
        self.batch = _copy(self.batch)

    def join(self, group: FrameGroup) -> None:
        """Share the range of a group."""
        self.group = group
        group.members.append(self)

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

        if self._levels is None:
            self._levels = self._find_levels(checkpoint)
        colors, alpha = self._levels
        values = self.batch[index]
        pixels = np.empty(values.shape, np.uint8)
        for part in _slices(values):
            checkpoint()
            pixels[part] = colors.scale(values[part])
            if values.shape[2] == 4:
                pixels[part][..., 3] = alpha.scale(values[part][..., 3])
        if pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        return Image.fromarray(pixels), (*self.note, *filter(None, [colors.note]))

    def _find_levels(self, checkpoint: Callable[[], None]) -> tuple[Levels, Levels]:
        """Return the levels of colors, and those of an alpha channel, which has its own range."""
        import numpy as np

        kind, size = self.batch.dtype.kind, self.batch.dtype.itemsize
        if kind == "b":
            same = Levels(lambda values: values.astype(np.uint8) * np.uint8(255))
            return same, same
        if kind == "u" and size == 1:
            low_mask = self._is_dark_mask(checkpoint) if self.normalize else False
            same = Levels(lambda values: values.astype(np.uint8), _DARK_MASK if low_mask else "")
            return same, same
        if not self.group.members:
            self.join(self.group)
        colors = self._levels_of(self.group.range(checkpoint))
        if self.batch.shape[3] != 4:
            return colors, colors
        return colors, self._levels_of(ValueRange.of(_parts(self.batch[..., 3:], checkpoint)))

    def _levels_of(self, values: ValueRange) -> Levels:
        kind, size = self.batch.dtype.kind, self.batch.dtype.itemsize
        if kind == "f":
            if not (self.normalize or values.finite):
                _refuse(
                    self.label,
                    "holds NaN or infinity: replace them, for example with np.nan_to_num(x), or "
                    "leave normalize on, which shows them as black and white",
                )
            return float_levels(values) or self._no_float_levels(values)
        if not self.normalize and kind == "u" and size == 2:
            return Levels(of_top(65_535), NEARLY_BLACK if values.high <= 255 else "")
        found = integer_levels(values)
        if found is None or (not self.normalize and values.high > 255):
            _refuse(
                self.label,
                f"holds integers from {values.low} to {values.high}: scale them to 0..255, "
                "or use uint16 for 0..65535",
            )
        return found if self.normalize else Levels(of_top(255))

    def _no_float_levels(self, values: ValueRange) -> NoReturn:
        _refuse(
            self.label,
            f"holds floats from {values.low:g} to {values.high:g}: scale them to 0..1 (or to "
            "0..255), for example with (x - x.min()) / np.ptp(x), or np.clip(x, 0, 1)",
        )

    def _is_dark_mask(self, checkpoint: Callable[[], None]) -> bool:
        # The first values tell nearly always, so that a photo costs nothing.
        if self.batch[0, :8, :8].max() > 1:
            return False
        return all(part.max() <= 1 for part in _parts(self.batch, checkpoint)) and any(
            part.max() for part in _parts(self.batch, checkpoint)
        )


def array_images(array: NDArray[Any], label: str, *, normalize: bool = True) -> ArrayImages:
    """Interpret an array as one image, or a batch as several.

    Shapes are HxW, HxWxC or NxHxWxC with 1, 3 (RGB) or 4 (RGBA) channels. Channels may also come
    first, if the last axis cannot be a channel axis and H and W are over 4; this is noted. bool
    is black and white, uint8 is unchanged. Other integers must be 0..65535, and are divided by
    the largest number of 8, 10, 12, 14 or 16 bits, whichever holds the highest of all images of
    the array; masks of 0 and 1 become black and white. Floats must be 0..1, or 0..255 if the
    highest is 2 or more; NaN becomes black and infinity white. All of this is noted.

    Parameters
    ----------
    array : numpy.ndarray
    label : str
        The name given by the user, for messages.
    normalize : bool
        False: uint16 is scaled from 0..65535, other integers must be 0..255, and NaN is refused.

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
    note = (f"channel-first array {_shape(array.shape)}",) if channel_first else ()
    return ArrayImages(label, batch, note, normalize)


def owner_of(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array that owns the memory of a view."""
    import numpy as np

    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _copy(array: NDArray[Any]) -> NDArray[Any]:
    """Copy an array; axes along which it repeats itself stay views."""
    import numpy as np

    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in array.strides)
    return np.broadcast_to(array[once].copy(), array.shape)


def taken_bytes(array: NDArray[Any]) -> int:
    """Return the number of bytes of a copy that `ArrayImages.take` makes."""
    sizes: list[int] = [n for n, step in zip(array.shape, array.strides, strict=True) if step]
    return int(array.dtype.itemsize) * math.prod(sizes)


def _parts(batch: NDArray[Any], checkpoint: Callable[[], None]) -> Iterator[NDArray[Any]]:
    """Yield all values of a batch, in slices."""
    for values in batch:
        for part in _slices(values):
            checkpoint()
            yield values[part]


def _slices(values: NDArray[Any]) -> Iterator[tuple[slice, slice]]:
    """Yield slices with a bounded number of values, which may be parts of a row."""
    height, width, channels = values.shape
    across = min(width, _SLICE_VALUES // channels)
    down = max(1, _SLICE_VALUES // (across * channels))
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield slice(top, top + down), slice(left, left + across)


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


def _type(array: NDArray[Any]) -> str:
    """Return the name of the dtype, shortened: that of a structured one may be very long."""
    return short_label(str(array.dtype), 40)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _refuse(label: str, why: str) -> NoReturn:
    raise ImageDecodeError(f"{label} {why}.", source=label)
