"""What is whole of a JSON text that was cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.data.grammar.partial_json import whole_values

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), values, max_size=4), st.integers(0, 200))
def test_the_whole_fields_are_those_of_the_answer(value: dict[str, object], end: int) -> None:
    text = json.dumps(value)
    found = whole_values(text[:end])
    if end:
        assert found.items() <= value.items() if not value else True
        assert all(value[name] == each for name, each in found.items())
        assert list(found) == list(value)[: len(found)]
    else:
        assert found is None
    assert whole_values(text) == value


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ('{"a": 1, "b": 12', {"a": 1}),
        ('{"a": 1, "b": 12,', {"a": 1, "b": 12}),
        ('{"a": tr', {}),
        ('{"a": true', {"a": True}),
        ('[{"a": 1}, {"a": 2}, {"a"', [{"a": 1}, {"a": 2}]),
        ('"red', None),
        ("", None),
    ],
)
def test_a_number_at_the_end_may_go_on(text: str, whole: object) -> None:
    assert whole_values(text) == whole
