"""How numbers become levels from 0 (black) to 255 (white): one rule for arrays and for files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scale = Callable[[NDArray[Any]], NDArray[np.uint8]]

DEPTHS = (8, 10, 12, 14, 16)
"""Bits of cameras, scanners and detectors, whose values are stored in wider types."""

# Filters overshoot slightly: values beyond the range by this much are clipped.
_OVERSHOOT = 0.001


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The range of the finite values of an input, and the number of other values.

    Attributes
    ----------
    low, high : int or float
        Of the finite values; 0 if there are none.
    nan, above, below : int
        Numbers of NaN, positive and negative infinities.
    """

    low: float = 0
    high: float = 0
    nan: int = 0
    above: int = 0
    below: int = 0

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        return not (self.nan or self.above or self.below)

    @classmethod
    def of(cls, parts: Iterable[NDArray[Any]]) -> ValueRange:
        """Return the range of all parts of an input."""
        import numpy as np

        lows: list[Any] = []
        highs: list[Any] = []
        nan = above = below = 0
        for part in parts:
            values = part
            if part.dtype.kind == "f" and not (finite := np.isfinite(part)).all():
                nan += int(np.isnan(part).sum())
                above += int(np.isposinf(part).sum())
                below += int(np.isneginf(part).sum())
                values = part[finite]
            if values.size:
                lows.append(_number(values.min()))
                highs.append(_number(values.max()))
        return cls(min(lows, default=0), max(highs, default=0), nan, above, below)

    @classmethod
    def union(cls, ranges: Iterable[ValueRange]) -> ValueRange:
        """Return the range of several inputs together."""
        found = list(ranges)
        return cls(
            min(each.low for each in found),
            max(each.high for each in found),
            sum(each.nan for each in found),
            sum(each.above for each in found),
            sum(each.below for each in found),
        )


@dataclass(frozen=True, slots=True)
class Levels:
    """A conversion of numbers to levels.

    Attributes
    ----------
    scale : callable
        Converts values to uint8.
    note : str
        What it does, for the user; ``""`` if the numbers are levels already.
    """

    scale: Scale
    note: str = ""


def integer_levels(values: ValueRange) -> Levels | None:
    """Return the levels of integers that are wider than 8 bits; None if they have none.

    The values are divided by the largest number of the smallest depth that holds their maximum.
    Masks of 0 and 1 become black and white. Negative values, and those beyond 16 bits, have no
    such depth.
    """
    low, high = int(values.low), int(values.high)
    if low < 0 or high >= 2 ** DEPTHS[-1]:
        return None
    if high <= 1:
        return Levels(of_top(1), "mask of 0 and 1 shown as black and white" if high else "")
    depth = next(bits for bits in DEPTHS if high < 2**bits)
    top = 2**depth - 1
    return Levels(of_top(top), f"values up to {high} read as 0..{top} ({depth}-bit)")


def of_top(top: int) -> Scale:
    """Return the conversion of 0..top to 0..255, rounded to the nearest level."""

    def scale(values: NDArray[Any]) -> NDArray[np.uint8]:
        import numpy as np

        if top == 255:
            return values.astype(np.uint8)
        # At most 65535 * 255, which fits.
        wide = values.astype(np.uint32) * np.uint32(255) + np.uint32(top // 2)
        levels: NDArray[np.uint8] = (wide // np.uint32(top)).astype(np.uint8)
        return levels

    return scale


def float_levels(values: ValueRange) -> Levels | None:
    """Return the levels of floats from 0 to 1 or from 0 to 255; None for other ranges.

    NaN and negative infinity become black, positive infinity becomes white.
    """
    low, high = values.low, values.high
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        return Levels(spread(0.0, 1.0), _odd_values(values))
    if low >= 0 and 2 <= high <= 255:
        return Levels(spread(0.0, 255.0), _joined("floats read as 0..255", _odd_values(values)))
    return None


def stretched(values: ValueRange) -> Levels:
    """Return levels from the lowest to the highest value."""
    low, high = values.low, values.high
    note = f"values {low:g} to {high:g} stretched to black to white"
    return Levels(spread(low, high - low or 1.0), _joined(note, _odd_values(values)))


def spread(base: float, span: float) -> Scale:
    """Return the conversion of base..base+span to 0..255, for floats and integers."""

    def scale(values: NDArray[Any]) -> NDArray[np.uint8]:
        import numpy as np

        # float16 could overflow; float32 is exact enough for 8 bits if the range begins at zero.
        exact = base == 0 and values.dtype.kind == "f"
        wide: NDArray[Any] = values.astype(np.float32 if exact else np.float64)
        wide = (wide - wide.dtype.type(base)) * wide.dtype.type(255.0 / span)
        wide = np.nan_to_num(wide, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        levels: NDArray[np.uint8] = np.rint(np.clip(wide, 0, 255)).astype(np.uint8)
        return levels

    return scale


def _odd_values(values: ValueRange) -> str:
    """Return how many values are not finite, and how they are shown."""
    parts = [
        f"{count} {name} shown as {shown}"
        for count, name, shown in (
            (values.nan, "NaN", "black"),
            (values.above, "+inf", "white"),
            (values.below, "-inf", "black"),
        )
        if count
    ]
    return ", ".join(parts)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _number(value: Any) -> Any:
    """Return a NumPy number as an int or a float."""
    return value.item() if value.dtype.itemsize <= 8 else float(value)
