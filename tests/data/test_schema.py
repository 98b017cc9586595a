"""Schemas of many kinds: one grammar, and the typed object of an answer."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from mlx_magic.data.grammar.json_grammar import accepts
from mlx_magic.data.schema import schema_of
from mlx_magic.errors import RequestError


class Receipt(BaseModel):
    """A receipt."""

    shop: str = Field(max_length=30)
    total: float = Field(ge=0, description="in euros")
    paid: datetime.date | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Movie(TypedDict):
    title: str
    year: int


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Pair(NamedTuple):
    first: int
    second: str


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Endless(BaseModel):
    next: Endless


class Plain:
    def __init__(self, x: int) -> None:
        self.x = x


class OwnInit(BaseModel):
    """A model that cannot be built from its fields."""

    x: int

    def __init__(self, y: int) -> None:
        super().__init__(x=y)


@dataclasses.dataclass
class Broken:
    """A dataclass whose __post_init__ always fails."""

    x: int

    def __post_init__(self) -> None:
        raise AttributeError("no such thing")


class Strict(BaseModel):
    """A model whose validator refuses many values."""

    x: int

    @field_validator("x")
    @classmethod
    def _large(cls, value: int) -> int:
        if value < 1_000:
            raise ValueError("too small")
        return value


JSON = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("schema", "text", "data"),
    [
        (Receipt, '{"shop": "A", "total": 2.5}', Receipt(shop="A", total=2.5)),
        (
            list[Receipt],
            '[{"shop": "A", "total": 1, "paid": "2024-02-29"}]',
            [Receipt(shop="A", total=1, paid=datetime.date(2024, 2, 29))],
        ),
        (Point, '{"x": 3}', Point(3)),
        (Movie, '{"title": "M", "year": 1931}', {"title": "M", "year": 1931}),
        (Color, '"green"', Color.GREEN),
        (Literal["a", 1], "1", 1),
        (Pair, '[1, "b"]', Pair(1, "b")),
        (int, "-12", -12),
        (dict[str, int], '{"a": 1, "b": 2}', {"a": 1, "b": 2}),
        (Annotated[float, Field(gt=0, lt=1)], "0.5", 0.5),
        (Node, '{"value": 1, "children": [{"value": 2}]}', Node(value=1, children=[Node(value=2)])),
        (bool | None, "null", None),
        (Strict, '{"x": 2000}', Strict(x=2000)),
        (JSON, '{"n": 4}', {"n": 4}),
        (json.dumps(JSON), '{"n": 4}', {"n": 4}),
        (
            "shape: str, count: int, color: red|green|dark blue, tags: list[str], price: float?",
            '{"shape": "x", "count": 1, "color": "dark blue", "tags": [], "price": null}',
            {"shape": "x", "count": 1, "color": "dark blue", "tags": [], "price": None},
        ),
        (
            "items: list[{name: str, size: int|large}]",
            '{"items": [{"name": "a", "size": "large"}, {"name": "b", "size": 3}]}',
            {"items": [{"name": "a", "size": "large"}, {"name": "b", "size": 3}]},
        ),
    ],
)
def test_an_answer_becomes_the_typed_object(schema: Any, text: str, data: object) -> None:
    made = schema_of(schema)
    assert accepts(made.grammar, text)
    assert made.read(text) == (data, None)
    assert type(made.read(text)[0]) is type(data)
    assert accepts(made.grammar, made.write(data))


def test_a_schema_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a schema.json"
    path.write_text(json.dumps(JSON), encoding="utf-8")
    assert schema_of(path).grammar == schema_of(str(path)).grammar == schema_of(JSON).grammar
    assert schema_of(path).key == schema_of(JSON).key


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (3, "3 is not a schema: use a pydantic model"),
        ("receipt", "'receipt' is neither a file nor a short form"),
        ("missing.json", "missing.json: No such file"),
        ({"enum": []}, "enum without values"),
        ({"a": {1, 2}}, "it is not JSON"),
        (Endless, "requires itself, so that no answer would end"),
        (Plain, "Plain: Unable to generate pydantic-core schema"),
        (OwnInit, "OwnInit cannot be built from its own fields"),
        (Broken, "Broken cannot be built from its own fields: no such thing"),
        (set[int], "the keyword uniqueItems is not supported"),
        (len, "len is a function"),
        ("count: integer", "count: 'integer' is not a type: use str, int"),
        ("count int: ", "count int: nothing is not a type"),
        (": int", "is not 'name: type'"),
        ("a: int, a: str", "it has two fields a"),
        ("a: red|red", "two alternatives are the same"),
        ("a: list[int", "a bracket or a quote is not closed"),
        (["a"], "['a'] is not a schema"),
        ({"type": "string", "enum": ["x" * 1_100_000]}, "characters as JSON"),
    ],
)
def test_what_is_no_schema_is_refused_in_one_line(schema: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        schema_of(schema)
    assert message in str(caught.value)
    assert caught.value.option == "schema"


def test_the_model_is_told_the_schema_without_what_it_does_not_need() -> None:
    told = schema_of(Receipt).instructions
    assert '"shop": {"maxLength": 30, "type": "string"}' in told
    assert "in euros" in told
    assert "title" not in told
    assert schema_of(Movie).instructions.count("title") == 2
    assert schema_of(Receipt, "As {schema}!").instructions.startswith("As {")
    assert schema_of(Receipt, "").instructions == ""


def test_an_answer_that_a_class_refuses_says_why() -> None:
    data, error = schema_of(Receipt).read('{"shop": "A", "total": -1}')
    assert data is None
    assert error == "total: Input should be greater than or equal to 0"


def test_an_example_has_to_follow_the_schema() -> None:
    made = schema_of(Receipt)
    assert made.write({"shop": "A", "total": 1}) == '{"shop": "A", "total": 1.0, "paid": null}'
    for wrong in ({"shop": "A"}, 3):
        with pytest.raises(RequestError, match="does not follow the schema"):
            made.write(wrong)
    with pytest.raises(RequestError, match="does not follow the schema"):
        schema_of(JSON).write({"n": "four"})
