"""Sanitizing of a model's text before it is shown. The text is never trusted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING

from mlx_magic.images.decoding.quiet_libraries import without_log_lines
from mlx_magic.notebook.display import formulas, markdown_text

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

LONGEST_RICH_TEXT = 100_000
"""Characters; a longer text is shown as plain text, not as Markdown."""

MOST_SIGNS = 12_000
"""Maximum number of newlines and Markdown signs in a text that is shown as Markdown."""
_SIGNS = "\n|[*_`\\$<&~#"

ALLOWED_TAGS = frozenset(
    {"p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li"}
    | {"a", "em", "strong", "s", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "span"}
)
ALLOWED_ATTRIBUTES = {"a": {"href"}, "ol": {"start"}}
ALLOWED_SCHEMES = frozenset({"http", "https", "mailto"})

_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colors, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]{0,4096}"
    r"(?:\x07|\x1b\\|\x9c)"  # title, clipboard; bounded, as a hostile text would take minutes
    r"|\x1b[ -/]*[0-~]"
)
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Controls; bidi embeddings, overrides and isolates. The marks U+200E, U+200F and U+061C stay:
# ordinary Arabic and Hebrew text has them, and they cannot reverse a whole line.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ABSOLUTE = re.compile(r"https?://[^/\\?#\s]|mailto:[^/\\?#\s]", re.IGNORECASE)


def to_plain(text: str) -> str:
    """Return `text` without terminal sequences, control characters and bidi overrides.

    Tabs and line feeds stay, other line ends become line feeds. A lone surrogate, which cannot
    be saved, becomes U+FFFD.
    """
    text = _LINE_END.sub("\n", _ANSI.sub("", text))
    return _SURROGATE.sub("\ufffd", _INVISIBLE.sub("", text))


def to_html(text: str) -> str:
    """Render Markdown as HTML that fetches nothing and runs nothing.

    HTML in the text is shown as text, an image as its description. A link is kept only if it
    is absolute and http, https or mailto. A formula that only draws (see `formulas`) is
    typeset, but only within an element of class `formulas.UNSET`; others are shown as code. Texts
    over `LONGEST_RICH_TEXT` characters or `MOST_SIGNS` signs, and whatever the Markdown parser
    trips over, are shown preformatted. Never raises.
    """
    import nh3

    text = to_plain(text)
    if not _is_rich(text):
        return preformatted(text)
    try:
        parser = _markdown()
        with without_log_lines("markdown_it"):
            rendered = str(parser.render(text))
    except Exception:  # the parser's own limits, e.g. RecursionError; the text is still shown
        return preformatted(text)
    return nh3.clean(
        rendered,
        tags=set(ALLOWED_TAGS),
        attributes=ALLOWED_ATTRIBUTES,
        attribute_filter=_keep_attribute,
        allowed_classes={"span": set(formulas.SET_CLASSES)},
        url_schemes=set(ALLOWED_SCHEMES),
        url_relative="deny",
        link_rel="noopener noreferrer",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def to_markdown(text: str, *, guarded: bool = True) -> str:
    """Return `text` as Markdown that is safe in programs that allow raw HTML and TeX.

    HTML, entities, images, links and reference definitions are escaped. Fences that some
    programs run (``mermaid``, ``{directive}``) become plain ones. TeX is text, except formulas
    that only draw. Emphasis, lists, tables and code blocks work. Texts over the limits of
    `to_html` become a code block. Never raises.

    Parameters
    ----------
    text : str
    guarded : bool
        Whether to wrap a text with TeX delimiters in an element that MathJax skips. A caller
        that passes False must wrap the text with `markdown_text.guarded`.
    """
    text = to_plain(text)
    try:
        markdown = markdown_text.body(text) if _is_rich(text) else markdown_text.fenced(text)
    except Exception:  # as in to_html
        markdown = markdown_text.fenced(text)
    return markdown_text.guarded(markdown) if guarded else markdown


def preformatted(text: str) -> str:
    """Return `text` as HTML that keeps newlines and spaces, and wraps long lines."""
    return (
        f'<pre class="{formulas.UNSET}" style="white-space:pre-wrap;overflow-wrap:anywhere">'
        f"{escape(to_plain(text))}</pre>"
    )


def _is_rich(text: str) -> bool:
    """Return whether a text is within the limits; parsing one of only signs takes seconds."""
    return len(text) <= LONGEST_RICH_TEXT and sum(map(text.count, _SIGNS)) <= MOST_SIGNS


def _keep_attribute(tag: str, attribute: str, value: str) -> str | None:
    """Drop attributes that nh3 allows on every tag, such as titles."""
    if attribute == "href" and not _ABSOLUTE.match(value):
        return None  # "http:api" is also relative, in a page that was loaded over http
    kept = ALLOWED_ATTRIBUTES.get(tag, set()) | {"rel", "target"}  # these two are set by nh3
    return value if attribute in kept or (tag, attribute) == ("span", "class") else None


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.add_render_rule("image", _describe_image)
    formulas.enable(parser)
    return parser


def _describe_image(
    self: object, tokens: Sequence[Token], index: int, options: object, env: object
) -> str:
    """Show the description of an image; its URL is dropped."""
    return f"[image: {escape(tokens[index].content)}]"
