"""JSON schemas as data: keywords, references, types, and combinations of two schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple
from urllib.parse import unquote

from mlx_magic.argument_checks import short_repr
from mlx_magic.errors import RequestError

JsonSchema = Any
"""A mapping, or a bool."""

ANNOTATIONS = frozenset(
    {
        "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
        "example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator",
        "contentMediaType", "contentEncoding",
    }
)  # fmt: skip
"""Keywords that do not affect which values are valid."""

_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_OF_TYPE = {
    "object": (
        "properties", "required", "additionalProperties", "propertyNames", "minProperties",
        "maxProperties",
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}  # fmt: skip
_SUPPORTED = frozenset(
    {"type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf"}
    | {keyword for keywords in _OF_TYPE.values() for keyword in keywords}
)
_WITHOUT_EFFECT: dict[str, object] = {"uniqueItems": False, "patternProperties": {}}


class SchemaError(RequestError):
    """Raised for a schema that cannot be used.

    Attributes
    ----------
    path : str
        Where in the schema, as a JSON pointer; empty for the whole.
    """

    def __init__(self, reason: str, path: str) -> None:
        where = f" at {_shortened(path)}" if path else ""
        super().__init__(f"The schema cannot be used{where}: {reason}.", option="schema")
        self.path = path


def _shortened(path: str) -> str:
    return path if len(path) <= 80 else f"{path[:40]}…{path[-39:]}"


def check_keywords(schema: Mapping[str, Any], path: str) -> None:
    """Refuse keywords that are not supported.

    Raises
    ------
    SchemaError
    """
    for keyword, value in schema.items():
        if not isinstance(keyword, str):
            raise SchemaError(f"{short_repr(keyword)} is not a keyword", path)
        known = keyword in _SUPPORTED or keyword in ANNOTATIONS or keyword.startswith("x-")
        if not known and _WITHOUT_EFFECT.get(keyword, schema) != value:
            raise SchemaError(f"the keyword {keyword} is not supported", path)


class References:
    """The references of one schema.

    Parameters
    ----------
    root : dict or bool
    """

    def __init__(self, root: JsonSchema) -> None:
        self._root = root
        self._recursive: dict[str, bool] = {}

    def resolve(self, reference: object, path: str) -> tuple[JsonSchema, str]:
        """Return the schema that a reference names, and its path.

        Raises
        ------
        SchemaError
            It is not in this schema.
        """
        if not isinstance(reference, str) or not (reference == "#" or reference[:2] == "#/"):
            raise SchemaError(f"$ref {short_repr(reference)}: only '#/...' is supported", path)
        found: Any = self._root
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            else:
                raise SchemaError(f"$ref {short_repr(reference)} names nothing", path)
        return found, reference

    def is_recursive(self, reference: str) -> bool:
        """Whether a schema refers to itself, perhaps through others."""
        if reference not in self._recursive:
            seen: set[str] = set()
            waiting = self._references_in(reference)
            while waiting:
                each = waiting.pop()
                if each not in seen:
                    seen.add(each)
                    waiting |= self._references_in(each)
            self._recursive[reference] = reference in seen
        return self._recursive[reference]

    def _references_in(self, reference: str) -> set[str]:
        try:
            waiting = [self.resolve(reference, "")[0]]
        except SchemaError:
            return set()
        found: set[str] = set()
        while waiting:
            each = waiting.pop()
            if isinstance(each, Mapping):
                if isinstance(each.get("$ref"), str):
                    found.add(each["$ref"])
                waiting += [v for k, v in each.items() if k not in ("$defs", "definitions")]
            elif isinstance(each, list):
                waiting += each
        return found


def types_of(schema: Mapping[str, Any], path: str) -> list[str] | None:
    """Return the types that a schema names, or that its keywords are about; None for any.

    Raises
    ------
    SchemaError
        There is no such type.
    """
    given = schema.get("type")
    if given is None:
        about = [kind for kind, words in _OF_TYPE.items() if any(w in schema for w in words)]
        return about or None
    types = [given] if isinstance(given, str) else given
    if not isinstance(types, list) or not types or any(each not in _TYPES for each in types):
        raise SchemaError(f"type is {short_repr(given)}: use {', '.join(_TYPES)}", path)
    return types


def type_of(value: object) -> set[str]:
    """Return the types of a JSON value."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    kinds = ((str, "string"), (list, "array"), (Mapping, "object"), (type(None), "null"))
    return {name for kind, name in kinds if isinstance(value, kind)}


def decimal(value: object, path: str) -> Decimal:
    """Return a number of a schema.

    Raises
    ------
    SchemaError
        It is none, or not finite.
    """
    try:
        if not isinstance(value, bool) and isinstance(value, int | float | Decimal):
            number = Decimal(str(value))
            if number.is_finite():
                return number
    except InvalidOperation:
        pass
    raise SchemaError(f"{short_repr(value)} is not a number", path)


class Bounds(NamedTuple):
    """Bounds of a number, and whether they are excluded themselves."""

    low: Decimal | None
    high: Decimal | None
    open_low: bool
    open_high: bool


def bounds(schema: Mapping[str, Any], path: str) -> Bounds:
    """Return the bounds of a number.

    Raises
    ------
    SchemaError
        A bound is not a number.
    """

    def read(name: str) -> Decimal | None:
        return decimal(schema[name], f"{path}/{name}") if name in schema else None

    low, above = read("minimum"), read("exclusiveMinimum")
    high, below = read("maximum"), read("exclusiveMaximum")
    open_low = above is not None and (low is None or above >= low)
    open_high = below is not None and (high is None or below <= high)
    return Bounds(above if open_low else low, below if open_high else high, open_low, open_high)


def counts(schema: Mapping[str, Any], least: str, most: str, path: str) -> tuple[int, int | None]:
    """Return two keywords that are counts.

    Raises
    ------
    SchemaError
        One is not a whole number of 0 or more, or is above a million.
    """
    found: list[int | None] = []
    for name in (least, most):
        value = schema.get(name)
        if value is not None:
            number = decimal(value, f"{path}/{name}")
            if number < 0 or number != number.to_integral_value() or number > 1_000_000:
                raise SchemaError(
                    f"{short_repr(value)} is not a whole number from 0 to a million",
                    f"{path}/{name}",
                )
            value = int(number)
        found.append(value)
    return found[0] or 0, found[1]


def check_counts(schema: Mapping[str, Any], properties: int, required: int, path: str) -> None:
    """Refuse counts of properties that the declared properties do not meet by themselves.

    Raises
    ------
    SchemaError
    """
    least, most = counts(schema, "minProperties", "maxProperties", path)
    if least > required:
        raise SchemaError("minProperties with optional properties is not supported", path)
    if most is not None and most < properties:
        raise SchemaError("maxProperties below the number of properties is not supported", path)


_TIGHTER: dict[str, Callable[[Any, Any], Any]] = {
    "minimum": max, "exclusiveMinimum": max, "minLength": max, "minItems": max,
    "minProperties": max, "maximum": min, "exclusiveMaximum": min, "maxLength": min,
    "maxItems": min, "maxProperties": min,
}  # fmt: skip


def merged(one: JsonSchema, other: JsonSchema, path: str) -> JsonSchema:
    """Return a schema of the values that satisfy both.

    Raises
    ------
    SchemaError
        Both have a keyword whose meanings cannot be joined.
    """
    if one is True or other is True:
        return other if one is True else one
    if one is False or other is False:
        return False
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        raise SchemaError("it is not a schema", path)
    both = dict(one)
    for keyword, value in other.items():
        if keyword in ANNOTATIONS or keyword not in both or both[keyword] == value:
            both.setdefault(keyword, value)
        else:
            both[keyword] = _joined(keyword, both[keyword], value, path)
    return both


def _joined(keyword: str, one: Any, other: Any, path: str) -> Any:
    if keyword in _TIGHTER:
        try:
            return _TIGHTER[keyword](one, other)
        except TypeError:
            raise SchemaError(f"{keyword} is not a number", path) from None
    if keyword == "properties":
        return {**one, **{k: merged(one.get(k, True), v, f"{path}/{k}") for k, v in other.items()}}
    if keyword == "required":
        return [*one, *(name for name in other if name not in one)]
    if keyword == "enum":
        return [value for value in one if value in other]
    if keyword in ("items", "additionalProperties", "propertyNames"):
        return merged(one, other, f"{path}/{keyword}")
    if keyword == "type":
        return _common_types(one, other)
    if keyword == "allOf":
        return [*one, *other]
    raise SchemaError(f"two of {keyword} at once are not supported", path)


def _common_types(one: Any, other: Any) -> list[str]:
    first, second = ([each] if isinstance(each, str) else list(each) for each in (one, other))
    common = [each for each in first if each in second]
    if "integer" not in common and (
        ("integer" in first and "number" in second) or ("number" in first and "integer" in second)
    ):
        common.append("integer")
    return common


def are_disjoint(
    one: JsonSchema, other: JsonSchema, plain: Callable[[JsonSchema], JsonSchema], depth: int = 0
) -> bool:
    """Whether it is certain that no value satisfies both schemas.

    Parameters
    ----------
    one, other : dict or bool
    plain : callable
        Resolves references.
    depth : int
    """
    one, other = plain(one), plain(other)
    if one is False or other is False:
        return True
    if depth > 8 or not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    values = [_values_of(each) for each in (one, other)]
    if values[0] is not None and values[1] is not None:
        return not any(value in values[1] for value in values[0])
    kinds = [_kinds(each) for each in (one, other)]
    if not kinds[0] & kinds[1]:
        return True
    needed = set(one.get("required", ())) & set(other.get("required", ()))
    return kinds[0] | kinds[1] == {"object"} and any(
        are_disjoint(
            one.get("properties", {}).get(name, True),
            other.get("properties", {}).get(name, True),
            plain,
            depth + 1,
        )
        for name in needed
    )


def _values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    values = _values_of(schema)
    if values is not None:
        return set().union(*(type_of(value) for value in values))
    if any(keyword in schema for keyword in ("anyOf", "oneOf", "allOf")):
        return set(_TYPES)
    types = types_of(schema, "")
    kinds = set(_TYPES) if types is None else set(types)
    return kinds | {"integer", "number"} if kinds & {"integer", "number"} else kinds
