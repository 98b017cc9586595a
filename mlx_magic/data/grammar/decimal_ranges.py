"""Regular expressions for decimal numbers within bounds, written without an exponent."""

from __future__ import annotations

from decimal import Decimal

INTEGER_DIGITS = 15
"""Digits before the point of a number whose schema has no bounds. A float64 holds 15 decimal
digits exactly (IEEE 754)."""

FRACTION_DIGITS = 6
"""Digits after the point of a number, unless a bound of the schema has more."""

LARGEST = 10**INTEGER_DIGITS - 1
"""Largest absolute value of a number whose schema has no bounds."""

_MOST_DIGITS = 40


def decimal_regex(
    low: Decimal | None, high: Decimal | None, *, open_low: bool = False, open_high: bool = False
) -> str | None:
    """Return a regular expression for the decimals within bounds.

    Parameters
    ----------
    low, high : Decimal or None
        Bounds. Without one, `LARGEST` is the largest absolute value.
    open_low, open_high : bool
        Whether the bound itself is excluded.

    Returns
    -------
    str or None
        None if there is no such number.

    Raises
    ------
    ValueError
        A bound has more than 40 digits.
    """
    if low is None and high is None:
        whole = f"[1-9][0-9]{{0,{INTEGER_DIGITS - 1}}}"
        return rf"-?(0|{whole})(\.[0-9]{{1,{FRACTION_DIGITS}}})?"
    most = Decimal(LARGEST) + 1 - Decimal(1).scaleb(-FRACTION_DIGITS)
    if low is None:
        assert high is not None
        low = -most if high > -most else high * 10 - 1
    if high is None:
        high = most if low < most else low * 10 + 1
    places = max(FRACTION_DIGITS, _places(low), _places(high))
    if max(len(str(abs(int(low)))), len(str(abs(int(high))))) + places > _MOST_DIGITS:
        raise ValueError(f"more than {_MOST_DIGITS} digits")
    parts: list[str] = []
    for count in range(places + 1):
        first, last = _scaled(low, high, count, open_low=open_low, open_high=open_high)
        if last >= 0 and first <= last:
            parts += _not_negative(max(first, 0), last, count)
        if first < 0 and first <= last:
            parts += [f"-{part}" for part in _not_negative(max(-last, 1), -first, count)]
    return f"({'|'.join(dict.fromkeys(parts))})" if parts else None


def _places(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def _scaled(
    low: Decimal, high: Decimal, places: int, *, open_low: bool, open_high: bool
) -> tuple[int, int]:
    """Return the smallest and the largest whole number of units of the last place."""
    (low_top, low_bottom), (high_top, high_bottom) = (
        low.as_integer_ratio(),
        high.as_integer_ratio(),
    )
    unit = 10**places
    first = -((-low_top * unit) // low_bottom)
    last = (high_top * unit) // high_bottom
    if open_low and first * low_bottom == low_top * unit:
        first += 1
    if open_high and last * high_bottom == high_top * unit:
        last -= 1
    return first, last


def _not_negative(first: int, last: int, places: int) -> list[str]:
    """Return expressions for the numbers of `first` to `last` units of the last place."""
    found = []
    for width in range(places + 1, len(str(last)) + 1 if last else places + 2):
        least = 0 if width == places + 1 else 10 ** (width - 1)
        begin, end = max(first, least), min(last, 10**width - 1)
        if begin <= end:
            texts = (str(begin).zfill(width), str(end).zfill(width))
            found.append(_between(*texts, width - places))
    if last and len(str(last)) <= places:
        # All of them are below 1.
        texts = (str(first).zfill(places + 1), str(last).zfill(places + 1))
        found = [_between(*texts, 1)]
    return found


def _between(low: str, high: str, point: int) -> str:
    """Return an expression for the digits from `low` to `high`, with a point at `point`."""
    if not low:
        return ""
    before = r"\." if point == 0 else ""
    if low[0] == high[0]:
        return f"{before}{low[0]}{_between(low[1:], high[1:], point - 1)}"
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    parts = []
    if low[1:] != "0" * rest:
        parts.append(f"{low[0]}{_between(low[1:], '9' * rest, point - 1)}")
        first += 1
    upper = ""
    if high[1:] != "9" * rest:
        upper = f"{high[0]}{_between('0' * rest, high[1:], point - 1)}"
        last -= 1
    if first <= last:
        parts.append(f"{_one_of(first, last)}{_any(rest, point - 1)}")
    if upper:
        parts.append(upper)
    return f"{before}({'|'.join(parts)})"


def _one_of(first: int, last: int) -> str:
    return str(first) if first == last else f"[{first}-{last}]"


def _any(count: int, point: int) -> str:
    """Return an expression for `count` digits, with a point before the one at `point`."""
    if 0 <= point < count:
        return f"{_digits(point)}\\.{_digits(count - point)}"
    return _digits(count)


def _digits(count: int) -> str:
    return "" if count == 0 else "[0-9]" if count == 1 else f"[0-9]{{{count}}}"
