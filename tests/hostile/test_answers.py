"""Hostile answers in every output: nothing runs, fetches, links or covers the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_magic.engine.request import OutputFormat
from mlx_magic.engine.result import VisionResult
from mlx_magic.images.image import make_image_input
from mlx_magic.notebook.display import formulas, live_view
from mlx_magic.notebook.display.render import bundle
from mlx_magic.notebook.display.sanitize import to_html, to_markdown, to_plain
from mlx_magic.notebook.display.tables import Table
from mlx_magic.notebook.panel.state.conversation import Answer, PanelImage, Turn
from mlx_magic.notebook.panel.state.export import to_json
from mlx_magic.notebook.panel.state.export import to_markdown as exported
from mlx_magic.notebook.panel.widgets import controls
from mlx_magic.options import Settings

from . import pandoc
from .answers import ANSWERS, HONEST, LARGE

ROOT = Path(__file__).parents[2]
ABSOLUTE = re.compile(r"(?i)https?://[^/\\?#]|mailto:[^/\\?#]")
COMMAND = re.compile(r"\\([A-Za-z]+)")
_MORE_THAN_DRAW = """
unicode style class cssId href url data texttip tip require def gdef edef newcommand renewcommand
newenvironment let includegraphics mmlToken bbox color textcolor colorbox fcolorbox definecolor
enclose rule Rule Space hspace vspace mspace kern mkern hskip mskip raise lower moveleft moveright
llap rlap smash mathllap mathrlap mathclap mathchoice phantom vphantom hphantom begingroup endgroup
csname catcode input immediate write openin verb label ref eqref tag char ce pu toggle mathtip
Tiny Huge huge HUGE sideset genfrac skew
"""
NEVER_SET = frozenset(_MORE_THAN_DRAW.split())
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
VOID = frozenset({"br", "hr", "img"})
_TAGS = """
p br hr h1 h2 h3 h4 h5 h6 blockquote ul ol li a em strong s code pre table thead tbody tr th td
span div figure figcaption img
"""
TAGS = frozenset(_TAGS.split())
_ATTRIBUTES = "href rel target start class style role alt src width height aria-label"
ATTRIBUTES = frozenset(_ATTRIBUTES.split())


class Page(HTMLParser):
    """HTML with what a program would typeset in it, each piece in the text of one element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.typeset: list[str] = []
        self.links: list[str] = []
        self._stack: list[tuple[str, bool]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        attributes = dict(attrs)
        assert set(attributes) <= ATTRIBUTES, attributes
        source = attributes.get("src") or "data:image/"
        assert source.startswith("data:image/"), source
        assert "url(" not in (attributes.get("style") or "")
        if "href" in attributes:
            self.links.append(attributes["href"] or "")
        names = (attributes.get("class") or "").split()
        sets = not self._stack or self._stack[-1][1]
        if "mathjax_ignore" in names:
            assert "tex2jax_ignore" in names
            sets = False
        if "mathjax_process" in names:
            assert "tex2jax_process" in names
            sets = True
        if tag in ("pre", "code"):
            sets = False
        if tag not in VOID:
            self._stack.append((tag, sets))

    def handle_endtag(self, tag: str) -> None:
        # As a browser does, where a program reads "$*$*" as emphasis.
        if any(opened == tag for opened, _ in self._stack):
            while self._stack.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        assert not CONTROLS.search(data)
        if data.strip() and (not self._stack or self._stack[-1][1]):
            self.typeset.append(data)


# What MathJax looks for in the text of an element.
DELIMITER = re.compile(r"\$|\\[(\[]|\\begin\s*\{|\\(eq)?ref\s*\{")


def check_formulas(texts: list[str]) -> None:
    for text in texts:
        if not DELIMITER.search(text):
            continue
        commands = set(COMMAND.findall(text))
        assert commands <= formulas.COMMANDS | {"begin", "end"}, text
        assert not commands & NEVER_SET, text
        assert not re.search(r"\^\^|(?<!\\)[%#]|\\\\ *\[-|\\\\ *\[[0-9]{3}", text), text


def check_html(html: str) -> Page:
    """Expect that HTML which stands by itself in an output is harmless."""
    page = Page(html)
    check_formulas(page.typeset)
    assert all(ABSOLUTE.match(link) for link in page.links), page.links
    html.encode("utf-8")
    return page


def rendered(markdown: str) -> str:
    """As a program shows Markdown that allows HTML, and every address."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.validateLink = lambda url: True  # type: ignore[method-assign]
    return str(parser.render(markdown))


_HTML_TAG = re.compile(r"<[^<>]*>")


def check_markdown(markdown: str, *, is_export: bool = False) -> None:
    """Expect that Markdown is harmless where HTML is allowed and TeX is typeset."""
    html = rendered(markdown)
    assert "<script" not in html
    assert "<a " not in html
    # Classes of code blocks are the program's own.
    html = re.sub(r' class="language-[^"]*"', "", html)
    check_html(html)
    markdown.encode("utf-8")
    if not is_export:
        assert "<img" not in html
    if pandoc.PANDOC is not None:
        assert list(pandoc.faults(pandoc.tree(markdown))) == []


def result(text: str, shown_as: OutputFormat = "markdown", model: str = "demo") -> VisionResult:
    return VisionResult(text, model, "length", format=shown_as)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_harmless_html(name: str) -> None:
    html = to_html(ANSWERS[name])
    page = check_html(f'<div class="{formulas.UNSET}">{html}</div>')
    if name.startswith("tex-"):
        assert page.typeset == []


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_harmless_markdown(name: str) -> None:
    check_markdown(to_markdown(ANSWERS[name]))
    if name.startswith("tex-"):
        assert formulas.SET not in to_markdown(ANSWERS[name])


def test_autolinked_url_contains_no_formula() -> None:
    """nbconvert makes links of addresses, and takes away no backslash in them."""
    mistune = pytest.importorskip("nbconvert.filters.markdown_mistune")
    html = mistune.markdown2html_mistune(to_markdown(ANSWERS["in-an-address"]))
    assert Page(html).typeset == []


@pytest.mark.parametrize("shown_as", ["markdown", "text", "json", "raw"])
def test_every_mime_type_of_each_result_is_harmless(shown_as: OutputFormat) -> None:
    for text in ANSWERS.values():
        shown = bundle(result(text, shown_as, model=text))
        assert not CONTROLS.search(shown["text/plain"].replace("\t", ""))
        if "text/html" in shown:
            check_html(shown["text/html"])


def test_names_notes_and_status_lines_are_not_typeset() -> None:
    """Only answers are typeset, not file names, notes, footers, tables, phases or problems."""
    for text in ANSWERS.values():
        image = make_image_input(Image.new("RGB", (8, 6), "red"), text, notes=[text])
        shown = bundle(VisionResult("x", text, "length", images=(image,), seen=(text,)))
        table = Table((text, "b"), ((text, text),), text)
        said = controls.message_html(text, problem=True)
        pieces = [shown["text/html"], table._repr_html_(), said, live_view._status(text)]
        pieces += [live_view._plain(text)]
        for piece in pieces:
            assert check_html(piece).typeset == []
        assert not CONTROLS.search(repr(table).replace("\t", ""))


@pytest.mark.parametrize("name", ANSWERS)
def test_an_exported_conversation_is_harmless(name: str) -> None:
    text = ANSWERS[name]
    image = make_image_input(Image.new("RGB", (8, 6), "red"), text, notes=[text])
    asked = Turn(
        "t1",
        text,
        (PanelImage("p1", image, text),),
        [Answer(text, result=result(text)), Answer("demo", error=text)],
        Settings(system=text),
    )
    check_markdown(exported([asked]), is_export=True)
    [turn] = json.loads(to_json([asked]))["turns"]
    assert turn["answers"][0]["text"] == text


@pytest.mark.parametrize("name", HONEST)
def test_ordinary_formula_is_typeset(name: str) -> None:
    text = HONEST[name]
    expected = len(re.findall(r"(?s)\$\$.*?\$\$|\$.*?\$|\\[(].*?\\[)]|\\\[.*?\\\]", text)) or 1
    page = check_html(f'<div class="{formulas.UNSET}">{to_html(text)}</div>')
    assert len(page.typeset) == expected
    assert "<code>" not in to_html(text)
    markdown = to_markdown(text)
    assert markdown.count(formulas.SET) == expected
    assert len(Page(rendered(markdown)).typeset) == expected


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.skipif(pandoc.PANDOC is None, reason="pandoc is not installed")
def test_ordinary_formula_reaches_latex(name: str) -> None:
    written = json.dumps(pandoc.tree(to_markdown(HONEST[name])))
    assert '"t": "Math"' in written or "begin{align" in written


@pytest.mark.parametrize(
    "text",
    [
        "costs $5 and $6, or $7",
        "C:\\Users\\new and `C:\\Users`",
        "**a** _b_ ~~c~~ `d`",
        "```python\nprint('\\n', \"$x$\")\n```",
        "1. a\n\n   ```python\n   x = 1\n\n   y = 2\n   ```\n2. b",
        "a // comment and http://ok.example/a and 1/2",
    ],
)
def test_ordinary_text_is_unchanged_in_markdown(text: str) -> None:
    from markdown_it import MarkdownIt

    plain = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    shown = re.sub(r"</?div[^>]*>\n", "", rendered(to_markdown(text)))
    assert shown.strip() == str(plain.render(text)).strip()


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, str], tuple[float, int]]:
    """Show all large answers once, in a process whose memory is bounded."""
    made = subprocess.run(
        [sys.executable, "-m", "tests.hostile.measured"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert made.returncode == 0, made.stderr[-2_000:]
    rows = [json.loads(line) for line in made.stdout.splitlines()]
    return {(name, form): (seconds, grown) for name, form, seconds, grown in rows}


@pytest.mark.parametrize("name", [*LARGE, "all together"])
def test_a_large_answer_takes_little_time_and_memory(
    measured: dict[tuple[str, str], tuple[float, int]], name: str
) -> None:
    for form in ("html", "markdown", "plain", "bundle", "streamed"):
        seconds, grown = measured[name, form]
        # Streamed it is drawn some hundred times: each of them takes a small part of this.
        assert seconds < (6 if form == "streamed" else 2), form
        assert grown < 500_000_000, form


@pytest.mark.parametrize("name", LARGE)
def test_a_large_answer_is_harmless(name: str) -> None:
    text = LARGE[name]()[:20_000]
    check_html(f'<div class="{formulas.UNSET}">{to_html(text)}</div>')


def test_only_drawing_commands_are_allowed_in_formulas() -> None:
    assert not formulas.COMMANDS & NEVER_SET


def test_formulas_of_a_page_are_typeset_up_to_a_limit() -> None:
    text = "$x$ " * (formulas.MOST + 50)
    assert to_html(text).count(formulas.SET) == formulas.MOST
    assert to_markdown(text).count(formulas.SET) == formulas.MOST


# `FUZZ_EXAMPLES=100000 pytest -k any_answer` looks for longer.
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
_PIECES = [
    *("$", "$$", "\\(", "\\)", "\\[", "\\]", "\\begin{align}", "\\end{align}", "\\begin{matrix}"),
    *(
        "\\end{matrix}",
        "\\unicode[x]{41}",
        "\\href{/api}{x}",
        "\\style{a}{b}",
        "\\input{x}",
        "\\def",
    ),
    *(
        "\\frac{1}{2}",
        "\\alpha",
        "\\\\",
        "\\\\[2pt]",
        "\\ ",
        "\\!",
        "\\{",
        "\\}",
        "{",
        "}",
        "x",
        "&",
    ),
    *(
        "unicode",
        "input{x}",
        "%",
        "#",
        "^^",
        "\\",
        "\\$",
        "\\`",
        "`",
        "``",
        "```",
        "~~~",
        "\n",
        "\n\n",
    ),
    *(
        "\n- ",
        "\n> ",
        "> ",
        "\n1. ",
        "\n   ",
        "\n    ",
        "\n```\n",
        "\n```python\n",
        "\n~~~\n",
        "    ",
    ),
    *(
        "\n---\n",
        "\n---- ----\n",
        "\n+---+\n",
        "| a | b |\n|---|---|\n| ",
        " | ",
        "|",
        "*",
        "**",
        "_",
    ),
    *(
        "[",
        "]",
        "(",
        ")",
        "](",
        "](/api)",
        "[x](http:api)",
        "]: /api",
        "![",
        "![x](http://h.invalid)",
    ),
    *(
        "<",
        ">",
        "<img src=x onerror=y>",
        "</div>",
        "</span>",
        "<div class=mathjax_process>",
        "<!--",
    ),
    *(
        "&#36;",
        "&lt;",
        "&bsol;",
        "{=latex}",
        "{math}",
        "{",
        "//h.invalid",
        "ftp://h.invalid",
        "http:",
    ),
    *(
        "\x1b[31m",
        "\u202e",
        "\ud800",
        "\0",
        "\r",
        "\u2028",
        "\t",
        "\u0300",
        " ",
        "a",
        "1",
        "é",
        "@x",
    ),
]
answers = st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=30).map(
    "".join
) | st.lists(st.sampled_from(list(ANSWERS.values())), max_size=3).map(
    lambda texts: "\n\n".join(texts)[:5_000]
)


@settings(
    max_examples=_EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(answers)
def test_any_answer_is_harmless_everywhere(text: str) -> None:
    began = time.process_time()
    shown = bundle(result(text))
    assert time.process_time() - began < 2
    check_html(shown["text/html"])
    check_markdown(shown["text/markdown"])
    check_markdown(
        exported(
            [Turn("t1", text, (), [Answer("m", result=result(text)), Answer("n", error=text)])]
        ),
        is_export=True,
    )
    assert to_plain(to_plain(text)) == to_plain(text)
