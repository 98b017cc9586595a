from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.engine.json_output import MOST_TRIES, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
CONTAINERS = st.lists(VALUES, max_size=4) | st.dictionaries(st.text(), VALUES, max_size=4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        (" \n[1, 2]\n", [1, 2]),
        ("\ufeff[1]", [1]),
        ("null", None),
        ("42", 42),
        ('"x"', "x"),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("```\n[1]\n```", [1]),
        ('```JSON \n{"a": "```"}\n```\n', {"a": "```"}),
        ('```json\n{"a": 1}', {"a": 1}),
        ('Here it is:\n```json\n{"a": 1}\n```\nAnything else?', {"a": 1}),
        ("```python\nprint(1)\n```\n```json\n[2]\n```", [2]),
        ("```json [1] ```", [1]),
        ('It is:\n{"a": [1, {"b": 2}]}\nGood?', {"a": [1, {"b": 2}]}),
        ('As [2] says, a 5" pipe:\n  {"a": 1}  \nSee [3].', {"a": 1}),
        ("first\n[1]\nthen\n[2]", [2]),
        ('A draft:\n```json\n{"a": 1}\n```\nBetter:\n```json\n{"a": 2}\n```', {"a": 2}),
        ('[1] Smith, 2001\n[2] Jones, 2002\n{"a": 3}', {"a": 3}),
        ('```text\n[9]\n[8]\n```\n{"a": 3}', {"a": 3}),
        ('[see the picture]\n{\n  "a": [\n    1\n  ]\n}\n', {"a": [1]}),
        ('{"a": 1}\nThat is [1] all.', {"a": 1}),
    ],
)
def test_json_is_found_in_an_answer(text: str, value: Any) -> None:
    assert parse_json(text) == (value, None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "the answer is empty"),
        (" \n", "the answer is empty"),
        ("A red square.", "Expecting value: line 1 column 1"),
        ('{"a": 1,}', "line 1 column"),
        ('{"a":\n 1 "b"}', "Expecting ',' delimiter: line 2 column 4"),
        ("{'a': 1}", "Expecting property name enclosed in double quotes: line 1 column 2"),
        ('Here:\n{"a": [1, 2], "b":', "Expecting value: line 2 column"),
        ('```json\n{"a" 1}\n```', "Expecting ':' delimiter: line 2 column 6"),
        ("[NaN]", "NaN is not JSON: line 1 column 1"),
        ("-Infinity", "-Infinity is not JSON: line 1 column 1"),
        ("[" * 100_000, "Nested too deeply: line 1 column 1"),
        ("9" * 10_000, "Exceeds the limit"),
        ("1 2", "Extra data: line 1 column 2"),
        ("The sky is blue [2].", "Expecting value: line 1 column 1"),
        ("[1] Smith, 2001", "Extra data: line 1 column 4"),
        ('It is {"a": 1} or so.', "Expecting value: line 1 column 1"),
        ('{"a": 1}\nNo:\n{"a": 2', "Expecting ',' delimiter: line 3 column"),
        ('{"a": 1}\nNo:\n{"a": two}', "Expecting value: line 3 column"),
        ('```json\n{"a": 1}\n```\nNo:\n```json\n{"a": 2', "Expecting ',' delimiter: line 6"),
        ('```\n{"a": 1} and more\n```', "Extra data: line 2 column 9"),
    ],
)
def test_invalid_json_error_is_one_line_with_its_position(text: str, error: str) -> None:
    value, found = parse_json(text)
    assert value is None
    assert found is not None
    assert error in found
    assert "\n" not in found


def test_degenerate_answer_is_rejected_quickly() -> None:
    for part in ("{a} ", "{a}\n", "[1] x\n", "```\n", "```\n{"):
        value, error = parse_json(part * 50_000)
        assert (value, error is not None) == (None, True)
    assert parse_json("[1] x\n" * MOST_TRIES + "[1]")[0] is None
    assert parse_json("[1] x\n" * (MOST_TRIES - 2) + "[1]") == ([1], None)


def test_truncated_json_gives_no_inner_value() -> None:
    whole = json.dumps({"list": [1, 2], "object": {"a": [3]}, "text": "[4]"})
    for end in range(1, len(whole)):
        for lead in ("", "Here: ", "Here:\n", "[1]\n", "```json\n", "```\n[1]\n```\n```\n"):
            assert parse_json(lead + whole[:end])[0] is None


@given(VALUES)
def test_any_json_round_trips(value: Any) -> None:
    assert parse_json(json.dumps(value, indent=1, ensure_ascii=False)) == (value, None)


@given(CONTAINERS)
def test_any_json_is_found_in_a_fence_and_on_its_own_lines_but_not_in_a_sentence(
    value: Any,
) -> None:
    text = json.dumps(value)
    assert parse_json(f"Sure!\n```json\n{text}\n```\nDone.") == (value, None)
    assert parse_json(f"It's this:\n{text}\nDone.") == (value, None)
    assert parse_json(f"It's this: {text}. Done.")[0] is None


@given(st.text() | st.text(alphabet='[]{}",:1 \n`\\'))
def test_any_text_parses_or_gives_an_error(text: str) -> None:
    value, error = parse_json(text)
    if error is not None:
        assert value is None
        assert "\n" not in error
