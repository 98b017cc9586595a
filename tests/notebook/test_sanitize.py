from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.notebook.display import formulas, sanitize
from mlx_magic.notebook.display.sanitize import (
    LONGEST_RICH_TEXT,
    preformatted,
    to_html,
    to_markdown,
    to_plain,
)

ATTRIBUTES = {
    "a": {"href", "rel", "target"},
    "ol": {"start"},
    "pre": {"style", "class"},
    "span": {"class"},
}

HOSTILE = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<img src=x onerror=alert(1)>",
    "<img/src=x/onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "<svg onload=alert(1)><a xlink:href='javascript:alert(1)'>x</a></svg>",
    "<svg><script>alert(1)</script></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<iframe src='javascript:alert(1)'></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data='data:text/html,x'></object><embed src=x>",
    "<style>body{background:url(http://evil.example)}</style>",
    "<link rel=stylesheet href=http://evil.example>",
    "<base href=http://evil.example>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<form action=http://evil.example><input name=a><button>go</button></form>",
    "<div style='position:fixed;inset:0' id=x class=y>over all</div>",
    "<details open ontoggle=alert(1)>",
    "<video src=http://evil.example autoplay onerror=alert(1)></video>",
    "<!-- <script>alert(1)</script> -->",
    "<!--><script>alert(1)</script>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?php echo 1 ?>",
    "<a href='http://ok.example' onclick=alert(1)>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](java&#10;script:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](&#x6A&#x61vascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x](< javascript:alert(1)>)",
    "[x](\x01javascript:alert(1))",
    "[x](javascript://example.org/%0Aalert(1))",
    "[x](vbscript:msgbox)",
    "[x](file:///etc/passwd)",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](data:image/png;base64,AAAA)",
    "[x](blob:http://x)",
    "[x](/logout)",
    "[x](//evil.example)",
    "[x](../../api)",
    "[x](#top)",
    "[x][1]\n\n[1]: javascript:alert(1)",
    "[1]\n\n[1]: <javascript:alert(1)> 'title'",
    "<javascript:alert(1)>",
    "<data:text/html,x>",
    '<http://ok.example/"onmouseover="alert(1)>',
    "![x](http://evil.example/p.png)",
    "![x][1]\n\n[1]: http://evil.example/p.png",
    "![1]\n\n[1]: http://evil.example/p.png",
    "[![x](http://evil.example/p.png)](http://evil.example)",
    "![x](data:image/svg+xml;base64,PHN2Zz4=)",
    "!\\[x](http://evil.example) !\\\\[x](http://evil.example)",
    "![<img src=x onerror=alert(1)>](x)",
    '[x](http://ok.example "onmouseover=alert(1)")',
    '[x](http://ok.example "\\"><script>alert(1)</script>")',
    "`<script>alert(1)</script>` ``` <img src=x onerror=alert(1)>",
    "```html\n<script>alert(1)</script>\n```",
    "```\n<script>alert(1)</script>",
    '```"><script>alert(1)</script>\nx\n```',
    "```mermaid\ngraph TD; A@{ img: 'http://evil.example' }\n```",
    "~~~ MERMAID\nclick A call alert()\n~~~",
    "```{raw} html\n<script>alert(1)</script>\n```",
    ":::{image} http://evil.example\n:::",
    "    <script>indented()</script>",
    "| <script>alert(1)</script> | b |\n|---|:-:|\n| ![x](http://evil.example) | 1 |",
    "> <script>\n> alert(1)\n> </script>",
    "# <img src=x onerror=alert(1)>",
    "1. <script>\n2. ![](http://evil.example)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\x1b]52;c;aGVsbG8=\x07 \x1b[31mred\x1b[0m \x1b]0;title\x1b\\ \x9b31m",
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\u202egpj.exe\u202c \u2066x\u2069",
    "nul\0 <scr\0ipt>alert(1)</scr\0ipt>",
    "half \ud800 pair",
    "<" * 1000,
    "[" * 1000,
    "> " * 1000,
    "*a " * 1000,
]


class Found(HTMLParser):
    """Everything that a browser would act on, checked as it is met."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag in sanitize.ALLOWED_TAGS
        for name, value in attrs:
            assert name in ATTRIBUTES.get(tag, set()), (tag, name)
            assert value is not None
            if name == "href":
                self.hrefs.append(value)
                assert re.match(r"(?i)(https?://|mailto:)", value), value
            if name == "class":
                assert value == {"pre": formulas.UNSET, "span": formulas.SET}[tag]
            if name == "style":
                assert value == "white-space:pre-wrap;overflow-wrap:anywhere"
        if tag == "a":
            assert ("rel", "noopener noreferrer") in attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"comment {data!r}")

    def handle_decl(self, decl: str) -> None:
        pytest.fail(f"declaration {decl!r}")

    def handle_pi(self, data: str) -> None:
        pytest.fail(f"instruction {data!r}")

    def unknown_decl(self, data: str) -> None:
        pytest.fail(f"unknown {data!r}")

    @property
    def text(self) -> str:
        return "".join(self.texts)


def parsed(html: str) -> Found:
    found = Found()
    found.feed(html)
    found.close()
    html.encode("utf-8")  # or it could not be saved
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_output_is_harmless_html(text: str) -> None:
    found = parsed(to_html(text))
    assert not re.search("[\0\x1b\x9b\u202a-\u202e\u2066-\u2069]", found.text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_output_inside_a_text_is_harmless(text: str) -> None:
    parsed(to_html(f"Some *text* and\n\n- a list {text}\n\n{text} **end**\n\n> {text}"))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_output_is_harmless_as_preformatted_text(text: str) -> None:
    assert set(parsed(preformatted(text)).tags) == {"pre"}


def as_a_trusting_program_shows(markdown: str) -> str:
    """Render as programs do that allow raw HTML, images and every address."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.validateLink = lambda url: True  # type: ignore[method-assign]
    return str(parser.render(markdown))


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_markdown_is_harmless_in_a_renderer_that_allows_html(text: str) -> None:
    markdown = to_markdown(text)
    html = as_a_trusting_program_shows(markdown)
    for tag in re.findall(r"<\s*([a-z!?][a-z0-9]*)([^>]*)", html, re.IGNORECASE):
        assert tag[0] in (sanitize.ALLOWED_TAGS | {"div"}) - {"a"}
        assert "on" not in tag[1].replace("strong", "")
    assert "language-mermaid" not in html.lower()
    assert not re.search(r"[`~:]{3}[ \t]*\{", markdown)


@given(st.text(alphabet="![]()<>:/\\`&;# \na\"'x~*_|{}") | st.sampled_from(HOSTILE))
def test_any_escaped_markdown_has_no_links_images_or_html(text: str) -> None:
    html = as_a_trusting_program_shows(to_markdown(text))
    assert not re.search(r"<(a|img|!|\?|script|svg)\b", html)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a **b** _c_ ~~d~~", "<p>a <strong>b</strong> <em>c</em> <s>d</s></p>\n"),
        ("- a\n- b", "<ul>\n<li>a</li>\n<li>b</li>\n</ul>\n"),
        ("3. a", '<ol start="3">\n<li>a</li>\n</ol>\n'),
        ("`x < 1`", "<p><code>x &lt; 1</code></p>\n"),
        ("<b>", "<p>&lt;b&gt;</p>\n"),
        ("![a *cat*](http://x/y.png)", "<p>[image: a *cat*]</p>\n"),
        ("a\r\nb\rc", "<p>a\nb\nc</p>\n"),
        ("", ""),
    ],
)
def test_ordinary_markdown_is_rendered(text: str, html: str) -> None:
    assert to_html(text) == html


def test_a_table_is_rendered() -> None:
    tags = parsed(to_html("| a | b |\n|---|--:|\n| 1 | 2 |")).tags
    assert tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]


@pytest.mark.parametrize("url", ["http://a.example/b?c=d", "https://a.example", "mailto:a@b.c"])
def test_http_links_are_kept(url: str) -> None:
    found = parsed(to_html(f"[x]({url}) <{url}>"))
    assert found.hrefs == [url, url]


def test_disallowed_link_keeps_its_text() -> None:
    found = parsed(to_html("See [the page](/logout)."))
    assert found.hrefs == []
    assert "the page" in found.text


def test_emphasis_lists_and_code_survive_as_escaped_markdown() -> None:
    text = "**a**\n\n- b\n\n```python\nprint('x')\n```\n"
    assert to_markdown(text) == text


def test_million_letters_without_a_space_are_shown_preformatted() -> None:
    html = to_html("a" * 1_000_000)
    assert parsed(html).tags == ["pre"]
    assert "a" * 1_000_000 in html


def test_length_limit_applies_only_to_rich_text() -> None:
    assert parsed(to_html("*" + "a" * (LONGEST_RICH_TEXT - 2) + "*")).tags == ["p", "em"]
    assert parsed(to_html("*" + "a" * LONGEST_RICH_TEXT + "*")).tags == ["pre"]


def test_text_that_the_parser_fails_on_is_shown_preformatted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Tripping:
        def render(self, text: str) -> str:
            raise RecursionError

    monkeypatch.setattr(sanitize, "_markdown", Tripping)
    assert parsed(to_html("<b>")).texts == ["<b>"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a\n\tb", "a\n\tb"),
        ("\x1b[1;31mred\x1b[0m\x1b[2K", "red"),
        ("\x1b]0;title\x07x\x1b]8;;http://e\x1b\\y", "xy"),
        ("\x1b]0;never ends", "0;never ends"),
        ("\x1bc\x1b(Bx\x9b2Jy", "xy"),
        ("a\x1b", "a"),
        ("a\0\x07\x08b\x7f\x9f", "ab"),
        ("a\r\nb\rc\u2028d\x0be", "a\nb\nc\nd\ne"),
        ("\u202eabc\u202c \u2067x\u2069", "abc x"),
        ("\u200fשם\u200e\u061c", "\u200fשם\u200e\u061c"),
        ("👩\u200d👧 é ½", "👩\u200d👧 é ½"),
        ("\ud800x\udfff", "\ufffdx\ufffd"),
        ("\ufeffx", "x"),
        ("<b>&amp;", "<b>&amp;"),
    ],
)
def test_plain_text_has_no_escape_sequences_or_control_characters(text: str, plain: str) -> None:
    assert to_plain(text) == plain


@given(st.text())
def test_plain_text_is_idempotent_and_can_be_saved(text: str) -> None:
    plain = to_plain(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", plain)
    assert to_plain(plain) == plain
    plain.encode("utf-8")


@given(
    st.lists(st.sampled_from(HOSTILE) | st.text(max_size=20), max_size=6).map("".join)
    | st.lists(st.sampled_from(HOSTILE), max_size=4).map("\n\n".join)
)
def test_any_text_is_harmless_html(text: str) -> None:
    parsed(to_html(text))


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_preformatted_text_keeps_its_content(text: str) -> None:
    assert parsed(preformatted(text)).text == text
