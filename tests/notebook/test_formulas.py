"""Formulas reach the page as the model wrote them, and prices are not formulas."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.notebook.display import formulas
from mlx_magic.notebook.display.sanitize import to_html, to_markdown

PRICES = (
    "$5 and $10",
    "$5-$10",
    "$5\N{EN DASH}$10",
    "$.50/$.75",
    "5$/10$",
    "5$ and 10$",
    "$5 each or 3 for 10$",
    "$5 per kg, or 10$",
    "US$5/US$7",
    "($5)/($6)",
    "$$5 and $$6",
    "-$5/-$6",
    "$5M-$7M",
    "**$5**/**$6**",
    "price $5_each_ and $6_each_",
    "| $5 | $6 |\n|---|---|\n| $7 | $8 |",
    "\\$5 and \\$6",
    "$PATH:$HOME",
    "$HOME/${USER}",
)
FORMULAS = (
    ("the $n$th", "n"),
    ("it costs $20 for $x = 3$ items", "x = 3"),
    ("turn by 90$^\\circ$ now", "^\\circ"),
    ("$5 \\text{ each or more}$", "5 \\text{ each or more}"),
    ("$5x$", "5x"),
    ("$2 \\sin x$", "2 \\sin x"),
    ("$x$-axis", "x"),
    ("$a$/$b$", "a"),
    ("$1{,}000$", "1{,}000"),
    ("\\$5 is $x$", "x"),
)


def typeset(page: str) -> list[str]:
    """Return the TeX of each formula of HTML, without delimiters."""
    found = re.findall(rf'<span class="{formulas.SET}">(.*?)</span>', page, re.DOTALL)
    return [html.unescape(tex)[2:-2].strip() for tex in found]


def mistune(text: str) -> str:
    """Return Markdown as nbconvert turns it into HTML."""
    filters = pytest.importorskip("nbconvert.filters.markdown_mistune")
    return str(filters.markdown2html_mistune(text))


@pytest.mark.parametrize("text", PRICES)
def test_prices_are_not_formulas(text: str) -> None:
    assert formulas.SET not in to_html(text) + to_markdown(text)
    visible = html.unescape(re.sub(r"<[^>]*>", "", to_html(text)))
    assert visible.count("$") == text.count("$")


@pytest.mark.parametrize(("text", "tex"), FORMULAS)
def test_formulas_among_prices_and_words_are_typeset(text: str, tex: str) -> None:
    assert typeset(to_html(text))[0] == tex
    assert f'"{formulas.SET}">${tex}$</span>' in to_markdown(text)


amounts = st.builds(
    lambda number, unit: f"${number}{unit}",
    st.integers(0, 10**6).map("{:,}".format) | st.floats(0, 99, width=16).map("{:.2f}".format),
    st.sampled_from(["", "k", "M", " bn", "/kg", "*", "_", " each"]),
)
joints = st.sampled_from([" ", " and ", ", ", "/", "-", " or ", ": ", "; ", " (", "\n", "**"])


@given(st.lists(st.tuples(amounts, joints), min_size=1, max_size=5))
def test_any_list_of_prices_has_no_formula(parts: list[tuple[str, str]]) -> None:
    text = "It costs " + "".join(amount + joint for amount, joint in parts) + "in all."
    assert formulas.SET not in to_html(text) + to_markdown(text)


ATOMS = (
    r"a*b*c x_1 y_{i_j} ** _e_ \alpha \frac{a*b}{c_d} a<b x>y a&b \text{if} \{a\} [a](b) f(x) |z| ~"
)
atoms = st.sampled_from([*ATOMS.split(), "!", "\\,", "'", "+", "-"])
# A star or a bracket at the beginning of a row would be an argument of the row's end.
rows = st.lists(atoms, max_size=4).map(lambda parts: " ".join(["r", *parts, "s"]))
displays = st.lists(rows, min_size=1, max_size=3).map(" \\\\ ".join)
wrappers = st.sampled_from(
    [("$", "$"), ("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("$$\n", "\n$$"), ("\\[\n", "\n\\]")]
)


@given(displays, wrappers, st.sampled_from(["{}", "See {} here.", "- {}", "# {}", "*a* {} *b*"]))
def test_formula_survives_in_html_and_markdown(
    tex: str, delimiters: tuple[str, str], around: str
) -> None:
    if "\n" in delimiters[0] and around != "{}":
        around = "Before\n\n{}\n\nafter"
    text = around.format(tex.join(delimiters))
    expected = re.sub(r"\s+", "", tex)
    show: tuple[Callable[[str], str], ...] = (to_html, lambda text: mistune(to_markdown(text)))
    for render in show:
        [found] = re.findall(rf'<span class="{formulas.SET}">(.*?)</span>', render(text), re.DOTALL)
        found = re.sub(r"\s+", "", html.unescape(found))
        assert re.sub(r"^(\$\$?|\\\(|\\\[)|(\$\$?|\\\)|\\\])$", "", found) == expected, render(text)
