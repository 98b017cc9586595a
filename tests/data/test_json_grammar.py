"""Grammars of JSON schemas: what follows one is valid, and every answer ends."""

from __future__ import annotations

import json
import os
import random
import time
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from mlx_magic.data.grammar import json_grammar
from mlx_magic.data.grammar.json_grammar import accepts, grammar_of, problem_of
from mlx_magic.data.grammar.json_schemas import SchemaError
from tests.data.schemas import json_schemas

EXAMPLES = 1000 if os.environ.get("MLX_MAGIC_EVERY") == "1" else 60
BYTES = LLTokenizer("byte")
jsonschema: Any = import_module("jsonschema")  # has no types


def written(grammar: str, chance: random.Random, limit: int = 4_000) -> str | None:
    """Write at random what a grammar allows, byte by byte; None if that takes too long."""
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    answer = bytearray()
    while len(answer) < limit:
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [token for token in range(256) if bits >> token & 1]
        # Ends are preferred, so that most answers are short.
        ends = [token for token in allowed if token in b'"}],']
        if matcher.is_accepting() and (not allowed or chance.random() < 0.5):
            return answer.decode("utf-8", "replace")
        assert allowed, f"no way on after {bytes(answer)!r}"
        token = chance.choice(ends if ends and chance.random() < 0.4 else allowed)
        assert matcher.consume_token(token)
        answer.append(token)
    return None


@pytest.mark.timeout(1_800 if EXAMPLES > 100 else 120)
@settings(max_examples=EXAMPLES)
@given(json_schemas(), st.integers(0, 3))
def test_whatever_follows_the_grammar_is_valid(schema: dict[str, Any], seed: int) -> None:
    text = written(grammar_of(schema), random.Random(seed))
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "the keyword uniqueItems is not supported"),
        (
            {"properties": {"a": {"not": {}}}},
            "at /properties/a: the keyword not is not supported",
        ),
        ({"if": {}, "then": {}}, "the keyword if is not supported"),
        ({"minlenght": 3}, "the keyword minlenght is not supported"),
        (
            {"items": {"oneOf": [{"type": "integer"}, {"type": "number"}]}},
            "at /items/oneOf: oneOf with alternatives that overlap",
        ),
        ({"enum": []}, "no answer satisfies it: enum without values"),
        ({"type": "text"}, "type is 'text'"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no whole number is within its bounds"),
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 1}, "no number is within its bounds"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength is above maxLength"),
        ({"type": "string", "pattern": "^ab$", "minLength": 5}, "exclude each other"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "#/$defs/nothing"}, "names nothing"),
        ({"$ref": "other.json"}, "only '#/...' is supported"),
        ({"$ref": "#"}, "# requires itself"),
        (
            {
                "$ref": "#/$defs/a",
                "$defs": {
                    "a": {"properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
                    "b": {"properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]},
                },
            },
            "requires itself, so that no answer would end",
        ),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "type is []"),
        ({"minProperties": 2, "type": "object"}, "minProperties above 1"),
    ],
)
def test_a_schema_that_cannot_be_used_is_named_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        grammar_of(schema)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schema_that_refers_to_itself_ends_after_some_levels() -> None:
    node = {
        "type": "object",
        "properties": {"next": {"$ref": "#/$defs/node"}},
        "additionalProperties": False,
    }
    grammar = grammar_of({"$ref": "#/$defs/node", "$defs": {"node": node}})
    deepest = "{}"
    for _ in range(json_grammar.MAX_RECURSION - 1):
        deepest = f'{{"next": {deepest}}}'
    assert accepts(grammar, deepest)
    assert not accepts(grammar, f'{{"next": {deepest}}}')


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"type": "string"}, json.dumps("x" * 2_000), json.dumps("x" * 2_001)),
        ({"type": "array", "items": {"const": 1}}, str([1] * 200), str([1] * 201)),
        ({"type": "integer"}, "9" * 15, "9" * 16),
        ({"type": "number"}, "1.123456", "1.1234567"),
        ({"type": "object"}, "{}", '{"a":1}'),
        ({"type": "string", "format": "date"}, '"2024-02-29"', '"2023-02-29"'),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {}]}, '[1, "a"]', '["a", 1]'),
        ({"enum": ["a"], "type": ["string", "null"]}, '"a"', "null"),
        ({"type": "integer", "multipleOf": 5}, "-35", "7"),
        ({"type": "number", "multipleOf": 0.25}, "0.75", "0.7"),
        (
            {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]},
            "4",
            "5",
        ),
        ({"propertyNames": {"enum": ["k"]}, "additionalProperties": {"const": 1}}, '{"k": 1}', "{"),
    ],
)
def test_what_a_schema_leaves_open_has_bounds(schema: Any, inside: str, outside: str) -> None:
    grammar = grammar_of(schema)
    assert problem_of(grammar) is None
    assert accepts(grammar, inside)
    assert not accepts(grammar, outside)


def test_oneof_is_taken_if_its_alternatives_exclude_each_other() -> None:
    def shape(name: str) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"kind": {"const": name}, "size": {"type": "integer"}},
            "required": ["kind", "size"],
        }

    grammar = grammar_of({"oneOf": [shape("circle"), shape("square"), {"type": "null"}]})
    assert accepts(grammar, '{"kind": "square", "size": 3}')
    assert accepts(grammar, "null")


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE: dict[str, Any] = {
    "an enum of 1 MB": {"enum": [f"value number {at:08}" for at in range(40_000)]},
    "200 levels": deep(200),
    "5,000 levels": deep(5_000),
    "3,000 optional properties": {
        "properties": {f"field {at}": {"type": "integer"} for at in range(3_000)}
    },
    "a string of a million characters": {"type": "string", "minLength": 1_000_000},
    "an array of a million": {"type": "array", "minItems": 1_000_000, "items": {"const": 1}},
    "doubling references": {
        "$ref": "#/$defs/d0",
        "$defs": {
            **{
                f"d{at}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{at + 1}"}] * 2}
                for at in range(60)
            },
            "d60": {"const": 1},
        },
    },
    "a bound of 400 digits": {"type": "number", "minimum": 10**400},
    "a slow pattern": {"type": "string", "pattern": "^(a+)+(b|a)*((x+x+)+y){30}$"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_ends_within_ten_seconds(name: str) -> None:
    begun = time.monotonic()
    try:
        grammar = grammar_of(HOSTILE[name])
        problem_of(grammar)
        matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar), log_level=0)
        matcher.compute_bitmask()
    except (SchemaError, ValueError, RuntimeError):
        pass
    assert time.monotonic() - begun < 10
