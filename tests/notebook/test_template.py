from __future__ import annotations

import ast
import builtins
import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.template import LONGEST_EXPRESSION, escape, fill

NAMESPACE: dict[str, object] = {"x": 3, "name": "cat", "d": {"a": 1, "}": 2}, "n": None}


def evaluate(expression: str) -> object:
    return eval(expression, {"__builtins__": builtins}, NAMESPACE)


def boom(expression: str) -> object:
    raise AssertionError(f"evaluated {expression!r}")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Is it a {name}?", "Is it a cat?"),
        ("{x}{x} { x } {x + 1}", "33 3 4"),
        ("{name.upper()}", "CAT"),
        ("{d['a']} {d['}']}", "1 2"),
        ("{ {1: 'one'}[1] }", "one"),
        ('{f"{x}!"}', "3!"),
        ("{'{'}", "{"),
        ("{'''a}'''}", "a}"),
        ("{n}", "None"),
        ("{x, name}", "(3, 'cat')"),
        ("{[i for i in range(x)]}", "[0, 1, 2]"),
        ("{\nx\n}", "3"),
        ("{x\n if x else\n 1}", "{x\n if x else\n 1}"),
    ],
)
def test_expressions_are_substituted(prompt: str, expected: str) -> None:
    assert fill(prompt, evaluate) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "no braces",
        "{}",
        "{ }",
        "{key: value}",
        "{x:.2f}",
        "{x!r}",
        "{x=}",
        '{"a": 1}',
        '{"a": {"b": [1, {"c": "it\'s"}]}, "d": {}}',
        '{"total": 0.0, "items": [{"name": "...", "price": 0.0}]}',
        '{"a":{"b":{"c":1}}}',
        "{...}",
        '{"a": ...}',
        "{",
        "}",
        "}}",
        "a }} b",
        "{don't}",
        "{a)}",
        "{x # no}",
        "{import os}",
        "{x = 1}",
        ":{ and :}",
        "{two words}",
        "\\frac{",
        "{ " * 300,
        "{(" * 300,
    ],
)
def test_text_that_is_not_an_expression_is_unchanged(prompt: str) -> None:
    assert fill(prompt, boom) == prompt


def test_expression_inside_json_is_substituted() -> None:
    assert fill('{"animal": "{name}", "n": {x}}', evaluate) == '{"animal": "cat", "n": 3}'


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("{{", "{"),
        ("{{x}}", "{x}"),
        ("{{x}", "{x}"),
        ("{{{x}}}", "{3}"),
        ('{{"a": {{"b": 1}}}}', '{"a": {"b": 1}}'),
        ('{{ {"a": {"b": 1}} }}', '{ {"a": {"b": 1}} }'),
        ("{{}}}}", "{}}}"),
    ],
)
def test_doubled_braces_are_literal_braces(prompt: str, expected: str) -> None:
    assert fill(prompt, evaluate) == expected


def test_substituted_value_is_not_expanded_again() -> None:
    assert fill("{name}", lambda _: "{x} {{ }}") == "{x} {{ }}"


def test_expressions_are_evaluated_once_from_left_to_right() -> None:
    seen: list[str] = []
    fill("{b} {a()} {b}", lambda text: seen.append(text))
    assert seen == ["b", "a()", "b"]


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("max", "a builtin of Python"),
        ("list", "a builtin of Python"),
        ("copyright", "a builtin of Python"),
        ("json", "a module"),
        ("json.dumps", "a function"),
        ("'x'.upper", "a function"),
        ("Path", "a class"),
        ("(lambda: 1)", "a function"),
    ],
)
def test_function_class_or_module_stays_as_written_and_is_noted(expression: str, kind: str) -> None:
    names = {"json": json, "Path": Path}
    notes: list[str] = []
    prompt = f"What is the {{{expression}}} here?"
    assert fill(prompt, lambda text: eval(text, dict(names)), notes.append) == prompt
    assert notes == [f"{{{expression}}} is {kind}: it stays as written."]


def test_variable_that_hides_a_builtin_is_substituted() -> None:
    notes: list[str] = []
    assert fill("{max} {id}", lambda text: {"max": 7, "id": "x"}[text], notes.append) == "7 x"
    assert notes == []


def test_unknown_name_error_says_how_to_write_a_brace() -> None:
    with pytest.raises(RequestError) as caught:
        fill("Read this {word}.", evaluate)
    assert str(caught.value) == (
        "{word}: name 'word' is not defined; write {{word}} for a literal brace."
    )
    assert caught.value.option == "prompt"


def test_failing_expression_is_named_with_its_error() -> None:
    with pytest.raises(RequestError, match=r"^\{d\['b'\]\}: KeyError: 'b'; write \{\{d\['b'\]\}\}"):
        fill("{d['b']}", evaluate)


def test_value_whose_str_fails_is_an_error() -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError("two\nlines")

    with pytest.raises(RequestError, match="ValueError: two lines; write"):
        fill("{x}", lambda _: Broken())


def test_error_without_a_message_is_named() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise ValueError

    def fail(_: str) -> object:
        raise BrokenError

    with pytest.raises(RequestError, match=r"^\{x\}: BrokenError; write"):
        fill("{x}", fail)


def test_interrupt_in_an_expression_is_raised() -> None:
    def interrupted(_: str) -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill("{x}", interrupted)


def test_very_long_expression_is_unchanged() -> None:
    prompt = "{" + "x+" * LONGEST_EXPRESSION + "x}"
    assert fill(prompt, boom) == prompt


def test_invalid_escape_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fill(r"{'\d'}", lambda text: text) == r"'\d'"


@given(st.text().filter(lambda text: not set(text) & set("{}")))
def test_text_without_braces_is_unchanged(text: str) -> None:
    assert fill(text, boom) == text


@given(st.text() | st.text(alphabet="{}a\"' :"))
def test_escaped_text_round_trips(text: str) -> None:
    assert fill(escape(text), boom) == text


@given(st.text() | st.text(alphabet="{}()[]x'\"\\:,.# \n"))
def test_any_text_expands_or_raises_only_usage_errors(text: str) -> None:
    def fail(expression: str) -> object:
        ast.parse(expression, mode="eval")  # only ever asked for what is valid
        raise LookupError(expression)

    filled, message = None, ""
    try:
        filled = fill(text, fail)
    except RequestError as error:
        message = str(error)
    assert "\n" not in message
    assert message or filled == text or "{{" in text


def brute_force(text: str) -> str | None:
    """The rule as stated: try each closing brace, take the first valid expression."""
    for at, char in enumerate(text):
        if char == "}":
            try:
                ast.parse(text[:at].strip(), mode="eval")
            except (SyntaxError, ValueError):
                continue
            return text[:at].strip()
    return None


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@given(st.text(alphabet="{}()[]x1'\"+, \n").filter(lambda text: not text.startswith("{")))
def test_end_of_an_expression_equals_brute_force_search(text: str) -> None:
    seen: list[str] = []
    fill("{" + text, lambda expression: seen.append(expression))
    if (expected := brute_force(text)) is not None:
        assert seen[0] == expected
