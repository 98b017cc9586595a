"""Random JSON schemas of the kinds that are supported."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

JsonSchema = dict[str, Any]

NAMES = ("a", "b c", 'quo"te', "übung", "$ref", "d", "type")
PATTERNS = ("^[a-c]{2,4}$", "x[0-9]+", "^(no|yes)$", r"^\d{3}-\d{2}$")
FORMATS = ("date", "time", "date-time", "duration", "email", "ipv4", "uuid")
SCALARS: list[Any] = ["red", "light blue", "", 'q"', 0, -3, 2.5, True, None]


@st.composite
def _strings(draw: st.DrawFn) -> JsonSchema:
    kind = draw(st.sampled_from(("plain", "bounds", "pattern", "format")))
    if kind == "pattern":
        return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
    if kind == "format":
        return {"type": "string", "format": draw(st.sampled_from(FORMATS))}
    if kind == "plain":
        return {"type": "string", "maxLength": 12}
    least = draw(st.integers(0, 4))
    return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 4))}


@st.composite
def _numbers(draw: st.DrawFn) -> JsonSchema:
    kind = draw(st.sampled_from(("integer", "number")))
    number = st.integers(-50, 50) if kind == "integer" else st.integers(-500, 500).map(_tenth)
    low, high = sorted((draw(number), draw(number)))
    if low == high:
        high += 1
    bound = {
        draw(st.sampled_from(("minimum", "exclusiveMinimum"))): low,
        draw(st.sampled_from(("maximum", "exclusiveMaximum"))): high + 1,
    }
    kept = draw(st.sets(st.sampled_from(sorted(bound))))
    return {"type": kind, **{key: bound[key] for key in sorted(kept)}}


def _tenth(value: int) -> float:
    return value / 10


_LEAVES = st.one_of(
    _strings(),
    _numbers(),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.sampled_from(SCALARS), min_size=1, max_size=4, unique_by=repr).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(SCALARS).map(lambda value: {"const": value}),
)


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[JsonSchema]) -> JsonSchema:
    names = draw(st.lists(st.sampled_from(NAMES), max_size=4, unique=True))
    return {
        "type": "object",
        "properties": {name: draw(inner) for name in names},
        "required": [name for name in names if draw(st.booleans())],
        "additionalProperties": False,
    }


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[JsonSchema]) -> JsonSchema:
    least = draw(st.integers(0, 2))
    most = least + draw(st.integers(0, 2))
    return {"type": "array", "items": draw(inner), "minItems": least, "maxItems": most}


def _maps(inner: st.SearchStrategy[JsonSchema]) -> st.SearchStrategy[JsonSchema]:
    return inner.map(
        lambda values: {"type": "object", "additionalProperties": values, "maxProperties": 2}
    )


def _unions(inner: st.SearchStrategy[JsonSchema]) -> st.SearchStrategy[JsonSchema]:
    return st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})


_NESTED = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(_objects(inner), _arrays(inner), _maps(inner), _unions(inner)),
    max_leaves=8,
)


@st.composite
def json_schemas(draw: st.DrawFn) -> JsonSchema:
    """Return a schema: nested, with optional properties, unions, patterns, bounds, references."""
    schema: JsonSchema = draw(_NESTED)
    if not draw(st.booleans()):
        return schema
    node = {
        "type": "object",
        "properties": {"value": draw(_LEAVES), "next": {"$ref": "#/$defs/node"}},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {
        "$defs": {"node": node},
        "type": "array",
        "items": {"anyOf": [schema, {"$ref": "#/$defs/node"}]},
        "maxItems": 2,
    }
