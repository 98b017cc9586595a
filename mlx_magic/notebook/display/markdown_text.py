"""Untrusted text as Markdown that is safe in programs that allow HTML and TeX in Markdown.

The viewers of JupyterLab and VS Code, nbconvert (with mistune, and with pandoc for LaTeX) and
Jupyter Book parse Markdown differently. So nothing here relies on how one of them parses an
ambiguous text: syntax beyond CommonMark is written as character references. Only what all of
them parse as code is left as it is.
"""

from __future__ import annotations

import itertools
import re
from functools import cache
from typing import TYPE_CHECKING

from mlx_magic.images.decoding.quiet_libraries import without_log_lines
from mlx_magic.notebook.display import formulas

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

# What a program could parse as HTML, TeX, a link, an image or a directive.
_SPECIAL = re.compile(
    r"\\\\|\\[$&<]|\\(?=[^\W\d_])|[$&<]|!\[|\](?:\(|:)|:?//(?=\S)|(?<=`)\{|\}(?=`)"
)
_REFERENCES = {"&": "&amp;", "<": "&lt;", "$": "&#36;", "\\": "&#92;", "{": "&#123;", "}": "&#125;"}
_PUNCTUATION = re.compile(r"[\\$&<>*_\[\]`!~|{}@:/#^]")
# Languages of code blocks that some programs render or run.
_RENDERED_LANGUAGES = ("mermaid", "math", "geojson", "topojson", "stl", "plantuml")
_FENCE_DIRECTIVE = re.compile(
    rf"([`~:]{{3}}[ \t]*)(?:\{{|(?:{'|'.join(_RENDERED_LANGUAGES)})\b)", re.IGNORECASE
)
_FENCE = re.compile(r"(`{3,})[ \t]*([A-Za-z0-9_+#.-]{0,30})")
_BACKTICKS = re.compile("`+")
_CODE = r"(?<![`\\])(?P<code>(?P<run>`{1,2})(?!`)[^`\n]+(?<!`)(?P=run)(?!`))"
_CODE_ONLY = re.compile(_CODE)
_MEANING = re.compile(rf"{_CODE}|\\\\|\\\$|(?P<math>\$|\\(?=[(\[]|begin\{{))")
_MATH = re.compile(r"\\\\|\\\$|(?P<math>\$|\\(?=[(\[]|begin\{))")
# Fences and tables of pandoc that CommonMark does not have.
_LINE_START = re.compile(
    r"(?m)^([ \t>]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)*)(`(?=``)|~(?=~~)|\+(?=[-=:]))"
)
_RISKY = re.compile(r"\\(?:[^\W\d_]|[(\[])|\$")
_QUOTE_MARKS = re.compile(r"\n[ \t]*(?:>[ \t]?)+")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(?=[/?#\s),;!'\"*\]]|:[0-9]|$)")
# Delimiters that MathJax could find in the rendered page. Backslashes that are added here stay
# visible within a URL that becomes a link automatically.
_DELIMITER = re.compile(r"[$]|&#36;|\\(?:[(\[]|begin)|&#92;\\?(?:[(\[]|begin|ref|eqref)")


def guarded(markdown: str) -> str:
    """Wrap Markdown so that only elements of the class `formulas.SET` are typeset."""
    if not _DELIMITER.search(markdown):
        return markdown
    return f'<div class="{formulas.UNSET}">\n\n{markdown.strip(chr(10))}\n\n</div>\n'


def fenced(text: str, language: str = "", least: int = 3) -> str:
    """Return `text` as a code block whose fence is longer than any run of backticks in it."""
    longest = max(map(len, _BACKTICKS.findall(text)), default=0)
    mark = "`" * max(least, longest + 1)
    return f"{mark}{language}\n{_escape_code(text)}\n{mark}"


def body(text: str) -> str:
    """Return a text as Markdown that is safe inside `guarded`.

    Parameters
    ----------
    text : str
        Plain text without control characters and terminal sequences.
    """
    lines = text.split("\n")
    blocks = _blocks(text)
    prose = _Prose(ambiguous=_ambiguous(lines, blocks))
    blocks_written: list[str] = []
    pending: list[tuple[str, bool]] = []
    at = 0
    for block in blocks:
        pending += [(line, False) for line in lines[at : block.begin]]
        at = block.end
        if block.code is not None:
            blocks_written += [prose.markdown(pending), block.code]
            pending = []
            continue
        inside = range(block.begin, block.end)
        pending += [("***" if block.rule else lines[line], line in block.marks) for line in inside]
    pending += [(line, False) for line in lines[at:]]
    blocks_written.append(prose.markdown(pending))
    markdown = _join_blocks(blocks_written)
    return markdown + "\n" * (text.endswith("\n") and not markdown.endswith("\n"))


class _Block:
    """A top-level block that is not plain prose.

    Attributes
    ----------
    begin, end : int
        Line numbers.
    code : str or None
        Its Markdown, if it is code.
    marks : set of int
        Numbers of the lines of code in it, fences included.
    rule : bool
        Whether it is a horizontal rule of dashes.
    """

    __slots__ = ("begin", "code", "end", "marks", "rule")

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.code: str | None = None
        self.marks: set[int] = set()
        self.rule = False


def _blocks(text: str) -> list[_Block]:
    """Return the blocks that are code, contain code, or are a rule of dashes."""
    lines = text.split("\n")
    found: list[_Block] = []
    parser = _parser()
    with without_log_lines("markdown_it"):
        tokens = parser.parse(text)
    for token in tokens:
        if token.map is None or token.nesting < 0:
            continue
        begin, end = token.map
        if token.level == 0:
            block = _Block(begin, end)
            if token.type in ("fence", "code_block"):
                block.code = _code(token, lines[begin:end])
            block.rule = token.type == "hr" and "-" in lines[begin]
            found.append(block)
        elif token.type in ("fence", "code_block") and found:
            if _RISKY.search(token.content) or _RISKY.search(token.info):
                # Programs differ in how deep code may be indented in a list.
                enclosing = found[-1]
                enclosing.code = fenced(
                    "\n".join(lines[enclosing.begin : enclosing.end]).rstrip("\n")
                )
            found[-1].marks |= set(range(begin, end))
    return [block for block in found if block.code is not None or block.marks or block.rule]


def _code(token: Token, lines: list[str]) -> str:
    """Return a code block with a fence that every program recognizes."""
    content = token.content.rstrip("\n")
    opening = _FENCE.fullmatch(lines[0].rstrip())
    language = opening[2] if opening else token.info.strip().split(" ")[0]
    if language.lower() in _RENDERED_LANGUAGES or not re.fullmatch(
        r"[A-Za-z0-9_+#.-]{0,30}", language
    ):
        language = "text"
    return fenced(content, language, len(opening[1]) if opening else 3)


def _ambiguous(lines: list[str], blocks: list[_Block]) -> bool:
    """Return whether prose has backticks that programs may parse differently."""
    skipped: set[int] = set()
    for block in blocks:
        skipped |= block.marks if block.code is None else set(range(block.begin, block.end))
    return any(
        "`" in _CODE_ONLY.sub("", line) for at, line in enumerate(lines) if at not in skipped
    )


class _Prose:
    """Escapes lines outside of code blocks, and safe code within lists.

    Parameters
    ----------
    ambiguous : bool
        Whether programs may parse the backticks differently.
    """

    def __init__(self, *, ambiguous: bool) -> None:
        self._ambiguous = ambiguous
        self._pattern = _MATH if ambiguous else _MEANING
        self._formulas = 0

    def markdown(self, lines: list[tuple[str, bool]]) -> str:
        """Return lines, each with whether it is code, as Markdown."""
        groups = []
        for is_code, group in itertools.groupby(lines, key=lambda line: line[1]):
            text = "\n".join(line for line, _ in group)
            groups.append(_escape_code(text) if is_code else self._prose(text))
        return _FENCE_DIRECTIVE.sub(r"\1text ", "\n".join(groups))

    def _prose(self, text: str) -> str:
        text = _LINE_START.sub(_at_line_start, text)
        parts: list[str] = []
        at = position = 0
        while (found := self._pattern.search(text, position)) is not None:
            position = found.end()
            if found.lastgroup == "math":
                formula = formulas.find(text, found.start())
                if formula is not None:
                    parts.append(_escape_special(text[at : found.start()]))
                    parts.append(self._formula(formula, text, found.start()))
                    at = position = formula.end
            elif not self._ambiguous and found["code"] is not None:
                before = _escape_special(text[at : found.start()])
                parts.append(before[:-1] + "&#125;" if before.endswith("}") else before)
                parts.append(_escape_code(found[0]))
                at = position
                if text.startswith("{", at):
                    parts.append("&#123;")
                    at += 1
        parts.append(_escape_special(text[at:]))
        return "".join(parts)

    def _formula(self, formula: formulas.Formula, text: str, at: int) -> str:
        line = text.rfind("\n", 0, at) + 1
        source = formula.source
        if text.startswith(">", line) and "\n" in source:
            unquoted = formulas.find(_QUOTE_MARKS.sub("\n", source), 0)
            formula = unquoted or formula
        self._formulas += 1
        if self._formulas <= formulas.MOST and formula.allowed:
            return formula.markdown()
        return " ".join(_PUNCTUATION.sub(lambda sign: f"&#{ord(sign[0])};", source).split())


def _at_line_start(found: re.Match[str]) -> str:
    # A backslash, as "&" of a reference would be escaped later.
    return f"{found[1]}\\{found[2]}"


def _escape_special(text: str) -> str:
    return _SPECIAL.sub(_escape_match, text)


def _escape_match(found: re.Match[str]) -> str:
    sign = found[0]
    if sign.endswith("//"):
        return _slashes(found)
    if sign in ("![", "](", "]:"):
        return f"{sign[0]}\\{sign[1]}"
    return _REFERENCES[sign[-1]]


def _slashes(found: re.Match[str]) -> str:
    """Keep http and https URLs; others must not become links, relative ones least of all."""
    if found[0] == "//":
        return "/&#47;"
    before = found.string[max(0, found.start() - 5) : found.start()].lower()
    # JupyterLab treats a URL whose host it cannot parse as a path of its own server.
    web = before.endswith(("http", "https")) and _HOST.match(found.string, found.end())
    return found[0] if web else "&#58;/&#47;"


def _escape_code(text: str) -> str:
    """Escape code so that it is safe in a program that does not parse it as code."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("![", "!\\[").replace("](", "]\\(").replace("]:", "]\\:")


def _join_blocks(parts: list[str]) -> str:
    """Put a blank line between parts where there is none."""
    text = ""
    for part in parts:
        if text and part:
            gap = (len(text) - len(text.rstrip("\n"))) + (len(part) - len(part.lstrip("\n")))
            text += "\n" * max(0, 2 - gap)
        text += part
    return text


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.core.ruler.disable("inline")
    return parser
