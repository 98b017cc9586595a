"""Formats of JSON strings, as regular expressions of what may stand between the quotes."""

from __future__ import annotations

_YEAR = "[0-9]{4}"
# Years that end in 00 are leap years if the century can be divided by 4.
_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DATE = (
    f"{_YEAR}-(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    f"|{_YEAR}-(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    f"|{_YEAR}-02-(0[1-9]|1[0-9]|2[0-8])"
    f"|{_LEAP}-02-29"
)
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_OFFSET = "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"

# The year 0000 is none in Python.
_SINCE_1 = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DAY = _DATE.replace(_YEAR, _SINCE_1).replace(
    _LEAP, "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26]|0[48])00)"
)

REGEXES = {
    "date": _DAY,
    "time": f"{_CLOCK}{_OFFSET}",
    "date-time": f"({_DAY})T{_CLOCK}{_OFFSET}",
    # A subset of ISO 8601 that means the same everywhere: no months and years.
    "duration": "P([0-9]{1,4}D|([0-9]{1,4}D)?T([0-9]{1,2}H([0-9]{1,2}M)?([0-9]{1,2}S)?"
    "|[0-9]{1,2}M([0-9]{1,2}S)?|[0-9]{1,2}S))",
}
"""By name of the format; dates and times follow RFC 3339, and exist in the calendar."""

OF_LLGUIDANCE = frozenset({"email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
"""Formats whose expressions are llguidance's. All others are annotations, as in JSON Schema."""
