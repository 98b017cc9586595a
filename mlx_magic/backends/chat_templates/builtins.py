"""Filters, tests and functions that a chat template may use, with their limits.

Imports jinja2: import it inside functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2

from mlx_magic.backends import upstream
from mlx_magic.backends.chat_templates import growth
from mlx_magic.backends.chat_templates.limits import (
    TemplateBudget,
    TemplateLimitError,
    UnsafeTemplateError,
    budget,
)

if TYPE_CHECKING:
    from jinja2.filters import make_attrgetter
    from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter
    from jinja2.utils import Namespace, _PassArg
else:
    _names = upstream.TEMPLATE_SANDBOX.names
    make_attrgetter, SandboxedFormatter = _names.make_attrgetter, _names.SandboxedFormatter
    Namespace, _PassArg = _names.Namespace, _names._PassArg

_REFUSED_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
# Filters that read all of an iterator, or each character of a text, before they return.
_EAGER = frozenset({"groupby", "list", "max", "min", "reverse", "slice", "sort", "unique"})
_BY_CHARACTER = _EAGER - {"reverse"} | {"batch"}
_LONGEST_DATE_FORMAT = 200
_LONGEST_MESSAGE = 2000


def install(environment: SandboxedEnvironment, *, like_transformers: bool) -> None:
    """Replace an environment's filters, tests and functions by limited ones.

    Parameters
    ----------
    environment : SandboxedEnvironment
    like_transformers : bool
        Whether to add those of transformers' chat templates.
    """
    filters: dict[str, Any] = {**environment.filters, "sum": _sum, "join": _join}
    environment.filters.update((name, _filter(name, f)) for name, f in filters.items())
    tests: dict[str, Any] = {**environment.tests}
    environment.tests.update((name, _test(f)) for name, f in tests.items())
    environment.filters.update((name, _refused("filter", name)) for name in _REFUSED_FILTERS)
    environment.globals.update(
        dict=Dictionaries(), namespace=PlainNamespace, lipsum=_refused("function", "lipsum")
    )
    if like_transformers:
        environment.filters["tojson"] = _filter("tojson", _as_json)
        environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)


@jinja2.pass_context
def shown(context: object, value: Any) -> Any:
    """Count a value that is about to be output. Takes the context so that Jinja calls it late."""
    if type(value) is str:
        return value
    limit = budget()
    limit.work(value)
    return limit.count_value(str(value))


def joinable(limit: TemplateBudget, separator: str, values: Iterable[Any]) -> list[Any]:
    """Return values as a list, after a check that the joined text is not too long.

    Raises
    ------
    TemplateLimitError
    """
    items = limit.listed(values)
    limit.require(limit.weight(items) + len(items) * len(separator))
    return items


class LimitedFormatter(SandboxedFormatter):
    """``text.format`` or ``text.format_map``, with each field limited."""

    def __init__(self, environment: SandboxedEnvironment, text: str, *, by_map: bool) -> None:
        super().__init__(environment)
        self._text = text
        self._by_map = by_map

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        """Format the text.

        Raises
        ------
        TemplateLimitError, UnsafeTemplateError
        """
        growth.require_form(self._text)
        if self._by_map:
            (kwargs,), args = args, ()
        return type(self._text)(self.vformat(self._text, args, kwargs))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Convert a field, as ``!r`` does."""
        budget().work(value)
        return budget().count_value(super().convert_field(value, conversion))

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Format a field."""
        growth.require_width(format_spec)
        budget().work(value)
        return budget().count_value(super().format_field(value, format_spec))


class Dictionaries:
    """The template's ``dict``, instead of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Make a dictionary."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Make a dictionary of equal values."""
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """The template's ``namespace``, without private attributes, and with a constant repr."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _require_public(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Limit the input and output of a filter."""
    kind = _PassArg.from_obj(function)

    @jinja2.pass_context
    def limited(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        limit = budget()
        limit.work(value, *args, *kwargs.values())
        growth.require_filter(limit, name, value, args, kwargs)
        each = isinstance(value, str) and name in _BY_CHARACTER
        if each or (isinstance(value, Iterator) and name in _EAGER):
            value = limit.listed(value)
        if kind is not None:
            passed = {"context": context, "eval_context": context.eval_ctx}
            args = (value, *args)
            value = passed.get(kind.name, context.environment)
        return limit.count_value(function(value, *args, **kwargs))

    return limited


def _test(function: Callable[..., Any]) -> Callable[..., Any]:
    """Limit the input of a test."""
    kind = _PassArg.from_obj(function)

    @jinja2.pass_environment
    def limited(environment: Any, *args: Any, **kwargs: Any) -> Any:
        budget().work(*args, *kwargs.values())
        return function(*(() if kind is None else (environment,)), *args, **kwargs)

    return limited


def _refused(kind: str, name: str) -> Callable[..., NoReturn]:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise TemplateLimitError(f"it uses the {kind} {name!r}, which is not allowed")

    return refuse


@jinja2.pass_environment
def _join(environment: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
    limit = budget()
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), limit.listed(value))
    separator = str(d)
    return separator.join(map(str, joinable(limit, separator, value)))


@jinja2.pass_environment
def _sum(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    if isinstance(start, str):
        raise TypeError("sum() can't sum strings")
    if attribute is not None:
        iterable = map(make_attrgetter(environment, attribute), iterable)
    for value in iterable:
        start = environment.call_binop(None, "+", start, value)
    return start


def _as_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: Any) -> NoReturn:
    raise jinja2.exceptions.TemplateError(str(message)[:_LONGEST_MESSAGE])


def _strftime_now(format: str) -> str:
    if len(format) > _LONGEST_DATE_FORMAT:
        raise TemplateLimitError(f"it writes the date in a form of {len(format):,} characters")
    growth.require_width(format)
    return datetime.now().strftime(format)


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise UnsafeTemplateError(f"the attribute {name!r} of a namespace")
