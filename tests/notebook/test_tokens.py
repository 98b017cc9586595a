from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.tokens import (
    Fragment,
    Token,
    quote,
    split_line,
    split_unfinished,
)


def raws(line: str) -> list[str]:
    return [token.raw for token in split_line(line)]


def texts(line: str) -> list[str]:
    return [token.text for token in split_line(line)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("   \t ", []),
        ("a.jpg  b.jpg", ["a.jpg", "b.jpg"]),
        (
            "[img1, df['a b'][3]] \"my photo.jpg\" -o r",
            ["[img1, df['a b'][3]]", '"my photo.jpg"', "-o", "r"],
        ),
        ("f(x, y) g({'a': [1, 2]})", ["f(x, y)", "g({'a': [1, 2]})"]),
        ("f('(') x", ["f('(')", "x"]),
        (r"f('it\'s )') x", [r"f('it\'s )')", "x"]),
        ("df[df['a b'] > 3] x", ["df[df['a b'] > 3]", "x"]),
        ("a # b", ["a", "#", "b"]),
        ("a.jpg#b", ["a.jpg#b"]),
    ],
)
def test_spaces_split_only_outside_quotes_and_brackets(line: str, expected: list[str]) -> None:
    assert raws(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--system (a b", ["--system", "(a", "b"]),
        ("--system nice :) now", ["--system", "nice", ":)", "now"]),
        ("a[1.jpg b.jpg", ["a[1.jpg", "b.jpg"]),
        ("(a b] c", ["(a", "b]", "c"]),
    ],
)
def test_unbalanced_brackets_are_ordinary_characters(line: str, expected: list[str]) -> None:
    assert raws(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('"my photo.jpg"', ["my photo.jpg"]),
        ("'my photo.jpg'", ["my photo.jpg"]),
        ('--system="be  terse"', ["--system=be  terse"]),
        (r"my\ photo.jpg", ["my photo.jpg"]),
        (r'"say \"hi\" \n"', [r'say "hi" \n']),
        (r"'a\b'", [r"a\b"]),
        ('"my dir"/a.jpg', ["my dir/a.jpg"]),
        ("''", [""]),
        ("df['a b']", ["df['a b']"]),
        ("it\\'s", ["it's"]),
    ],
)
def test_quotes_are_removed_as_in_a_shell(line: str, expected: list[str]) -> None:
    assert texts(line) == expected


def test_only_a_fully_quoted_word_counts_as_quoted() -> None:
    line = "'a b' \"c\"'d' \"my dir\"/x e"
    assert [token.quoted for token in split_line(line)] == [True, True, False, False]


def test_unquoted_words_are_not_quoted() -> None:
    assert split_line("a [b]") == [Token("a", "a"), Token("[b]", "[b]")]


@pytest.mark.parametrize("line", ["it's", 'a "b c', "f('x", "[a, 'b] c"])
def test_open_quote_is_an_error_of_one_line(line: str) -> None:
    with pytest.raises(RequestError, match="quote is not closed") as caught:
        split_line(line)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_name_round_trips_through_quoting(name: str) -> None:
    assert texts(quote(name)) == [name]


@given(st.lists(st.text(), max_size=4))
def test_quoted_names_stay_separate(names: list[str]) -> None:
    assert texts(" ".join(quote(name) for name in names)) == names


@given(st.text(alphabet="ab '\"()[]{}\\-=#\n\t"))
def test_any_line_is_split_or_refused(line: str) -> None:
    try:
        tokens = split_line(line)
    except RequestError:
        return
    assert "".join("".join(token.raw.split()) for token in tokens) == "".join(line.split())


@pytest.mark.parametrize(
    ("line", "before", "fragment"),
    [
        ("", [], Fragment()),
        ("a.jpg ", ["a.jpg"], Fragment()),
        ("a.jpg b", ["a.jpg"], Fragment("b", "b")),
        ("'my ph", [], Fragment("'my ph", "my ph", "'")),
        ("x [a, b", ["x"], Fragment("[a, b", "[a, b", "", 1)),
        ("x [a['k", ["x"], Fragment("[a['k", "[a['k", "'", 2)),
        ("a) b", ["a)"], Fragment("b", "b")),
    ],
)
def test_word_before_the_cursor_can_be_unfinished(
    line: str, before: list[str], fragment: Fragment
) -> None:
    tokens, found = split_unfinished(line)
    assert [token.raw for token in tokens] == before
    assert found == fragment
