from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from mlx_magic.engine.json_output import parse_json
from mlx_magic.engine.request import OutputFormat
from mlx_magic.engine.result import FinishReason, Timings, Usage, VisionResult
from mlx_magic.images.opening import ImageInput, open_images
from mlx_magic.notebook.display import formulas
from mlx_magic.notebook.display.render import bundle, data_html, thumbnails_html, usage_line


@dataclass(frozen=True)
class FakeThumbnail:
    data: bytes
    mime: str
    width: int
    height: int


@dataclass(frozen=True)
class FakeImage:
    source: str = "cat.png"
    size: tuple[int, int] = (64, 48)
    original_size: tuple[int, int] = (64, 48)
    note: str | None = None
    pixels: object = None
    digest: str = "0"

    def thumbnail(self, max_side: int = 256) -> FakeThumbnail:
        assert max_side == 256
        return FakeThumbnail(b"\x89PNG", "image/png", 64, 48)


def image_input(**fields: Any) -> ImageInput:
    return cast("ImageInput", FakeImage(**fields))


def result(
    text: str = "A **red** square.",
    *,
    shown_as: OutputFormat = "markdown",
    finish: FinishReason = "stop",
    **fields: Any,
) -> VisionResult:
    if shown_as == "json":
        data, error = parse_json(text)
        fields = {"data": data, "data_error": error, **fields}
    return VisionResult(text, "demo", finish, format=shown_as, **fields)


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"img", "br", "hr"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "".join(self.texts)


def page(html: str) -> Page:
    found = Page(html)
    assert found.open == []
    return found


def test_markdown_answer_has_three_mime_types() -> None:
    shown = bundle(result())
    assert shown["text/plain"] == "A **red** square."
    assert shown["text/markdown"] == "A **red** square."
    assert "<p>A <strong>red</strong> square.</p>" in shown["text/html"]
    assert page(shown["text/html"]).text.endswith("demo")
    assert set(shown) == {"text/plain", "text/markdown", "text/html"}


@pytest.mark.parametrize("shown_as", ["markdown", "text", "json", "raw"])
@pytest.mark.parametrize("text", ["[1]", "no json"])
def test_rendered_answer_has_no_timing_rate_or_memory(shown_as: OutputFormat, text: str) -> None:
    first = result(text, shown_as=shown_as)
    second = replace(
        first,
        timings=Timings(1, 2, 3, 4, 5, 6.0, 7, 8),
        usage=Usage(10, 20, 30, 40),
        peak_memory=99,
    )
    assert bundle(first) == bundle(second)


def test_mime_bundle_is_deterministic() -> None:
    asked = result(images=(image_input(), image_input(source="dog.png")))
    assert bundle(asked) == bundle(asked)


@pytest.mark.parametrize(
    ("finish", "words"),
    [("length", "cut off at max_tokens"), ("cancelled", "cancelled"), ("timeout", "timed out")],
)
def test_answer_cut_short_names_the_reason(finish: FinishReason, words: str) -> None:
    shown = bundle(result("One, two", finish=finish))
    assert shown["text/plain"] == f"One, two\n[{words}]"
    assert shown["text/markdown"] == f"One, two\n\n*{words}*"
    assert page(shown["text/html"]).text.endswith(f"demo · {words}")


def test_cancelled_answer_without_text_says_cancelled() -> None:
    shown = bundle(result("", finish="cancelled"))
    assert shown["text/plain"] == "[cancelled]"
    assert "(no text)" in page(shown["text/html"]).text


def test_text_format_is_shown_unchanged() -> None:
    shown = bundle(result("# a\n  <b>  *c*", shown_as="text"))
    assert set(shown) == {"text/plain", "text/html"}
    found = page(shown["text/html"])
    assert "# a\n  <b>  *c*" in found.texts
    [pre] = found.all("pre")
    assert "white-space:pre-wrap" in (pre["style"] or "")


def test_raw_format_is_exactly_the_text() -> None:
    assert bundle(result(" # a\n\n<b>\t", shown_as="raw", finish="length")) == {
        "text/plain": " # a\n\n<b>\t"
    }


def test_raw_format_has_no_terminal_escapes() -> None:
    assert bundle(result("a\x1b]52;c;eA==\x07\x1b[2Jb", shown_as="raw")) == {"text/plain": "ab"}


def test_data_is_shown_as_a_table() -> None:
    table = data_html('{"a": "<b>", "c": [1, null]}')
    assert table is not None
    assert "<tr><th>a</th><td>&lt;b&gt;</td></tr><tr><th>c</th><td>[1, null]</td></tr>" in table
    rows = data_html(json.dumps([{"x": 1}, {"x": 2, "y": "z"}, *[{"x": 0}] * 300]))
    assert rows is not None
    assert "<tr><th>x</th><th>y</th></tr><tr><td>1</td><td></td></tr>" in rows
    assert "102 more" in rows
    for other in ("3", "[]", "{}", "[1]", "{", "[" * 100_000):
        assert data_html(other) is None


def test_json_is_shown_indented() -> None:
    shown = bundle(result('Sure:\n{"a":"<é>"}', shown_as="json"))
    assert shown["text/plain"] == '{\n  "a": "<é>"\n}'
    assert '{\n  "a": "<é>"\n}' in page(shown["text/html"]).texts
    assert set(shown) == {"text/plain", "text/html"}


def test_json_null_is_a_valid_answer() -> None:
    assert bundle(result("null", shown_as="json"))["text/plain"] == "null"


def test_invalid_json_is_shown_below_the_error() -> None:
    shown = bundle(result('{"a": <b>', shown_as="json", finish="length"))
    line = "Not valid JSON: Expecting value: line 1 column 7"
    assert shown["text/plain"] == f'{line}\n{{"a": <b>\n[cut off at max_tokens]'
    found = page(shown["text/html"])
    assert found.all("p") == [{"role": "alert"}]
    assert found.texts[:2] == [line, '{"a": <b>']


def test_unserializable_data_falls_back_to_the_text() -> None:
    loop: list[object] = []
    loop.append(loop)
    shown = bundle(replace(result("x"), format="json", data=loop))
    assert shown["text/plain"] == "x"


def test_images_are_shown_above_the_answer_with_captions() -> None:
    images = (
        image_input(),
        image_input(source="b.png", original_size=(640, 480), note="first of 12 frames"),
    )
    found = page(bundle(result(images=images))["text/html"])
    first, second = found.all("img")
    assert first["src"] == "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
    assert (first["alt"], first["width"], first["height"]) == ("cat.png", "64", "48")
    assert second["alt"] == "b.png"
    assert "cat.png · 64 × 48" in found.texts  # noqa: RUF001
    assert "b.png · 64 × 48 (from 640 × 480) · first of 12 frames" in found.texts  # noqa: RUF001
    assert [figure["role"] for figure in found.all("figure")] == ["listitem"] * 2
    [row] = [div for div in found.all("div") if div.get("role") == "list"]
    assert row["aria-label"]
    assert found.text.index("cat.png") < found.text.index("square")


def test_thumbnail_is_small_and_its_caption_has_the_notes() -> None:
    [image] = open_images(Image.new("RGB", (1000, 500), "red"), name="img", max_pixels=320_000)
    found = page(thumbnails_html([image]))
    [shown] = found.all("img")
    assert (shown["alt"], shown["width"], shown["height"]) == ("img", "256", "128")
    assert found.text == "img · 800 × 400 · scaled down from 1000x500 to 800x400"  # noqa: RUF001
    kind, _, data = (shown["src"] or "").partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert kind == f"data:{small.get_format_mimetype()}"
        assert small.size == (256, 128)


def test_no_images_means_no_image_row() -> None:
    assert thumbnails_html(()) == ""


def test_hostile_image_name_is_escaped() -> None:
    name = "\"><script>alert(1)</script>\x1b[2J\u202e'.png"
    html = thumbnails_html([image_input(source=name, note="<b>")])
    found = page(html)
    assert [tag for tag, _ in found.tags] == ["div", "figure", "img", "figcaption"]
    assert found.all("img")[0]["alt"] == "\"><script>alert(1)</script>'.png"
    shown = bundle(replace(result(), model="<img src=x onerror=alert(1)>"))["text/html"]
    assert page(shown).all("img") == []


def test_long_image_name_is_truncated() -> None:
    alt = page(thumbnails_html([image_input(source="x" * 500)])).all("img")[0]["alt"]
    assert alt is not None
    assert len(alt) == 80


def test_styles_are_inline_and_every_color_has_a_fallback() -> None:
    html = bundle(result(images=(image_input(),), finish="length"))["text/html"]
    assert "<style" not in html
    assert set(re.findall(r'class="([^"]*)"', html)) == {formulas.UNSET}
    assert "#000" not in html
    variables = re.findall(r"var\(--jp-[a-z0-9-]+(,?)", html)
    assert variables
    assert set(variables) == {","}


def test_html_without_styles_reads_in_the_same_order() -> None:
    html = bundle(result(images=(image_input(),), finish="length"))["text/html"]
    bare = page(re.sub(r' style="[^"]*"', "", html))
    assert re.sub(r"\s+", " ", bare.text) == (
        "cat.png · 64 × 48A red square. demo · cut off at max_tokens"  # noqa: RUF001
    )


@given(st.text(), st.sampled_from(["markdown", "text", "json", "raw"]))
def test_any_answer_can_be_shown_and_saved(text: str, shown_as: OutputFormat) -> None:
    shown = bundle(result(text, shown_as=shown_as))
    for form in shown.values():
        form.encode("utf-8")
    if "text/html" in shown:
        page(shown["text/html"])


@pytest.mark.parametrize(
    ("usage", "timings", "line"),
    [
        (
            Usage(51, 16, 0, 12),
            Timings(time_to_first_token=0.108, generation_tps=101.4),
            "51 prompt tokens (16 image), 12 written, 101 tokens/s, first token after 0.11 s",
        ),
        (
            Usage(51, 16, 46, 1),
            Timings(generation_tps=3.456),
            "51 prompt tokens (16 image, 46 cached), 1 written, 3.46 tokens/s",
        ),
        (Usage(5, 0, 0, 0), Timings(), "5 prompt tokens, 0 written"),
        (
            Usage(5, 0, 0, 9),
            Timings(generation_tps=12345.6),
            "5 prompt tokens, 9 written, 12,346 tokens/s",
        ),
    ],
)
def test_usage_line_has_the_counts(usage: Usage, timings: Timings, line: str) -> None:
    assert usage_line(result(usage=usage, timings=timings)) == line


HOSTILE_THOUGHTS = "So </details><script>x</script> **it** is\n\n```\n</details> open"


def test_thoughts_are_folded_before_the_answer() -> None:
    shown = bundle(result("Red.", reasoning="It **is** red."))
    assert shown["text/plain"] == "Red."
    head, fold, rest = re.split(r"(<details.*</details>)", shown["text/html"], flags=re.DOTALL)
    assert "<summary" in fold
    assert "It <strong>is</strong> red." in fold
    assert " open" not in fold.partition(">")[0]
    assert "Red." not in head + fold
    assert "Red." in rest
    markdown = shown["text/markdown"]
    assert markdown.startswith("<details>\n<summary>Thinking</summary>\n\n> It **is** red.\n")
    assert markdown.endswith("</details>\n\nRed.")


def test_thoughts_cannot_end_their_fold() -> None:
    shown = bundle(result("Red.", reasoning=HOSTILE_THOUGHTS))
    for page in (shown["text/html"], MarkdownIt().render(shown["text/markdown"])):
        assert page.count("<details") == page.count("</details>") == 1
        assert "<script" not in page
        assert "Red." in page.partition("</details>")[2]


@pytest.mark.parametrize("shown_as", ["text", "json"])
def test_thoughts_are_folded_in_other_formats(shown_as: OutputFormat) -> None:
    shown = bundle(result("[1]", shown_as=shown_as, reasoning="So."))
    assert "So." in shown["text/html"]
    assert "So." not in shown["text/plain"]


def test_answer_that_was_cut_in_its_thoughts_says_so() -> None:
    shown = bundle(result("", finish="length", reasoning="So it"))
    assert shown["text/plain"] == "[cut off at max_tokens while thinking]"


def test_result_without_thoughts_has_no_fold() -> None:
    shown = bundle(result("Red."))
    assert "details" not in shown["text/html"] + shown["text/markdown"]
