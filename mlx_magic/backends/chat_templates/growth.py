"""Size estimates for results of operators, methods and filters in chat templates.

A call into C cannot be interrupted, so too large a result is refused before the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mlx_magic.backends.chat_templates.limits import ITEM, TemplateBudget, TemplateLimitError

Estimate = Callable[..., int]

MOST_BITS = 2**16
"""Bits of an integer."""

MOST_STRIPPED = 1000
"""Characters to strip off: each character of the text is compared to each of them."""

SLOW_TEXT = 2**20
"""Characters of a text for filters that loop over it in Python."""

MOST_PARTS = 1000
"""Parts of the name of an attribute, such as ``a.b.c``."""

LONGEST_FORM = 2**14
"""Characters of a text that values are formatted into."""

_PLACE = re.compile(
    r"%(?:\([^)]{0,200}\))?[-#0 +]*(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d+)?)?[hlL]?(?:.|\Z)",
    re.DOTALL,
)
_LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


def require_operands(budget: TemplateBudget, operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be too large.

    Parameters
    ----------
    budget : TemplateBudget
    operator : str
        ``"+"``, ``"-"``, ``"*"``, ``"/"``, ``"//"``, ``"%"`` or ``"**"``.
    left, right : object

    Raises
    ------
    TemplateLimitError
    """
    if isinstance(left, int) and isinstance(right, int):
        bits = {
            "*": left.bit_length() + right.bit_length(),
            "**": left.bit_length() * max(right, 0),
        }.get(operator, 0)
        if bits > MOST_BITS:
            raise TemplateLimitError("it computes an integer of too many digits")
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, (str, list, tuple)):
                length = len(value) if isinstance(value, str) else budget.weight(value)
                budget.require(length * max(times, 0))
    elif operator == "%" and isinstance(left, str):
        budget.require(_printf(budget, left, right))
    elif not isinstance(left, (int, float)):
        budget.require(budget.weight(left) + budget.weight(right))


def require_form(form: str) -> None:
    """Refuse too long a format string.

    Raises
    ------
    TemplateLimitError
    """
    if len(form) > LONGEST_FORM:
        raise TemplateLimitError(f"it formats into a text of {len(form):,} characters")


def require_width(spec: str) -> None:
    """Refuse a format specification with a very large width or precision.

    Raises
    ------
    TemplateLimitError
    """
    if any(len(digits) > 4 for digits in re.findall(r"\d+", spec)):
        raise TemplateLimitError(f"it formats with a width or a precision of {spec[:40]!r}")


def require_method(
    budget: TemplateBudget, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Refuse a call of a text's method whose result would be too large.

    Raises
    ------
    TemplateLimitError
    """
    estimate = _METHODS.get(name)
    if estimate is None:
        return
    _require(budget, estimate, name, text, args, kwargs)


def require_filter(
    budget: TemplateBudget, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Refuse a filter whose result would be too large.

    Raises
    ------
    TemplateLimitError
    """
    if name in _SLOW and budget.weight(value) > SLOW_TEXT:
        raise TemplateLimitError(f"it gives the filter {name!r} more than {SLOW_TEXT:,} characters")
    if name in _BY_ATTRIBUTE:
        for path in (*args, *kwargs.values()):
            if isinstance(path, str) and path.count(".") + path.count(",") > MOST_PARTS:
                raise TemplateLimitError(f"it gives the filter {name!r} too long an attribute")
    estimate = _FILTERS.get(name)
    if estimate is None:
        return
    _require(budget, estimate, name, value, args, kwargs)


def _require(
    budget: TemplateBudget,
    estimate: Estimate,
    name: str,
    value: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    try:
        length = estimate(budget, value, *args, **kwargs)
    except (TypeError, ValueError, OverflowError) as error:
        raise TemplateLimitError(f"it calls {name!r} with invalid arguments: {error}") from error
    budget.require(length)


def _printf(budget: TemplateBudget, form: str, values: Any) -> int:
    """Estimate ``form % values``."""
    require_form(form)
    length, places = len(form), 0
    for place in _PLACE.finditer(form):
        places += 1
        for key in ("width", "precision"):
            text = place[key]
            if text == "*":
                raise TemplateLimitError("it formats with a width of '*'")
            require_width(text or "")
            length += int(text or 0)
    # A mapping's value may be used by every field, a tuple's by one.
    times = places if isinstance(values, Mapping) else 1
    return length + times * budget.weight(values)


def _replaced(budget: TemplateBudget, text: Any, old: Any, new: Any, count: Any = -1) -> int:
    source, part = str(text), str(old)
    times = source.count(part)
    if isinstance(count, int) and 0 <= count < times:
        times = count
    return len(source) + times * max(len(str(new)) - len(part), 0)


def _padded(budget: TemplateBudget, text: Any, width: Any = 80, fill: Any = " ") -> int:
    return int(max(width, len(str(text))))


def _tabbed(budget: TemplateBudget, text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * max(tabsize, 0)


def _lines(budget: TemplateBudget, text: str, keepends: Any = False) -> int:
    return len(text) + ITEM * sum(map(text.count, _LINE_ENDS))


def _stripped(budget: TemplateBudget, text: Any, chars: Any = None) -> int:
    if chars is not None and len(chars) > MOST_STRIPPED:
        raise TemplateLimitError(f"it strips {len(chars):,} different characters off a text")
    return 0


def _split(budget: TemplateBudget, text: str, sep: Any = None, maxsplit: int = -1) -> int:
    times = len(text) // 2 if sep is None else text.count(sep)
    if sep is None and times * ITEM > budget.longest // 2:
        # The number of words is unknown; this counts them without making all of them.
        times = len(text.split(None, budget.items))
    return len(text) + ITEM * (times if maxsplit < 0 else min(times, maxsplit))


def _indented(
    budget: TemplateBudget, text: Any, width: int | str = 4, first: Any = False, blank: Any = False
) -> int:
    source = str(text)
    blanks = len(width) if isinstance(width, str) else max(width, 0)
    return _lines(budget, source) + blanks * (source.count("\n") + 2)


def _printf_filter(budget: TemplateBudget, form: Any, *args: Any, **kwargs: Any) -> int:
    return _printf(budget, str(form), kwargs or args)


def _batched(budget: TemplateBudget, value: Any, linecount: Any, fill_with: Any = None) -> int:
    return int(linecount) * ITEM


def _sliced(budget: TemplateBudget, value: Any, slices: Any, fill_with: Any = None) -> int:
    return int(slices) * ITEM


def _rounded(budget: TemplateBudget, value: Any, precision: Any = 0, method: Any = "common") -> int:
    if abs(precision) > 400:
        raise TemplateLimitError(f"it rounds to {precision} digits")
    return 0


def _as_json(
    budget: TemplateBudget,
    value: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> int:
    weight, depth = budget.measured(value)
    width = len(indent) if isinstance(indent, str) else int(indent or 0)
    width = width * (depth + 1) + sum(map(len, separators or ()))
    return weight + weight // ITEM * width


def _as_json_plain(budget: TemplateBudget, value: Any, indent: Any = None) -> int:
    return _as_json(budget, value, indent=indent)


def _number(budget: TemplateBudget, value: Any, *args: Any, **kwargs: Any) -> int:
    if isinstance(value, str) and len(value) > 2**12:
        raise TemplateLimitError(f"it reads a text of {len(value):,} characters as a number")
    return 0


_METHODS: Mapping[str, Estimate] = {
    "center": _padded,
    "expandtabs": _tabbed,
    "ljust": _padded,
    "lstrip": _stripped,
    "replace": _replaced,
    "rjust": _padded,
    "rsplit": _split,
    "rstrip": _stripped,
    "split": _split,
    "splitlines": _lines,
    "strip": _stripped,
    "zfill": _padded,
}

_FILTERS: Mapping[str, Estimate] = {
    "batch": _batched,
    "center": _padded,
    "float": _number,
    "format": _printf_filter,
    "indent": _indented,
    "int": _number,
    "replace": lambda budget, text, old, new, count=None: _replaced(budget, text, old, new, count),
    "round": _rounded,
    "slice": _sliced,
    "tojson": _as_json,
    "tojson_plain": _as_json_plain,
    "trim": _stripped,
}

_SLOW = frozenset({"title", "urlencode", "wordcount"})
_BY_ATTRIBUTE = frozenset(
    {"groupby", "join", "map", "max", "min", "rejectattr", "selectattr", "sort", "sum", "unique"}
)
