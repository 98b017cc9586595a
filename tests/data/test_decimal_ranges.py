"""Regular expressions for decimals within bounds."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.data.grammar.decimal_ranges import FRACTION_DIGITS, decimal_regex

numbers = st.tuples(st.integers(-2000, 2000), st.integers(0, 4)).map(
    lambda pair: Decimal(pair[0]).scaleb(-pair[1])
)


@given(
    low=st.none() | numbers,
    high=st.none() | numbers,
    opens=st.tuples(st.booleans(), st.booleans()),
    value=st.integers(-2_000_000, 2_000_000),
    places=st.integers(0, FRACTION_DIGITS),
)
def test_a_number_matches_if_it_is_within_the_bounds(
    low: Decimal | None, high: Decimal | None, opens: tuple[bool, bool], value: int, places: int
) -> None:
    number = Decimal(value).scaleb(-places)
    text = f"{number:f}"
    if text.startswith("-") and number == 0:
        return
    above = low is None or number > low or (number == low and not opens[0])
    below = high is None or number < high or (number == high and not opens[1])
    regex = decimal_regex(low, high, open_low=opens[0], open_high=opens[1])
    assert bool(regex and re.fullmatch(regex, text)) == (above and below)


def test_bounds_of_too_many_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 40 digits"):
        decimal_regex(Decimal(10) ** 50, None)
