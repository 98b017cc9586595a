from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from mlx_magic.engine.result import Timings, Usage, VisionResult
from mlx_magic.images.image import ImageInput, make_image_input
from mlx_magic.notebook.panel.state.conversation import Answer, PanelImage, Turn
from mlx_magic.notebook.panel.state.export import FORMAT, VERSION, file_name, to_json, to_markdown
from mlx_magic.options import Settings

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</blockquote><script>alert(1)</script>",
    "![x](http://evil.example/p.png)",
    "![x][1]\n\n[1]: http://evil.example/p.png",
    "[x](javascript:alert(1))",
    "[Question 1]: http://evil.example",
    "](http://evil.example/p.png) ![x](http://evil.example/p.png",
    "x](data:,) <img src=http://evil.example onerror=alert(1)> ![y",
    "```\nnever closed",
    "~~~~~~~~\nnever closed\n> > ```",
    "<!-- never closed",
    "<![CDATA[ never closed",
    "<details>",
    "## Question 9\n\nForged\n===\n\n---\n\n# Big",
    "a\n\n> b\n\n## Question 9",
    "    indented\n\tcode\n\n## Question 9",
    "* * *\n- a\n\n## Question 9\n1. x",
    "a\r## Question 9\u2028## Question 9\x0b## Question 9",
    "\x1b]0;title\x07\u202e\x00x",
    "`",
    "\\",
    "*", "**", "&lt;script&gt;", "$$", "|a|b|\n|-|-|", "<http://evil.example>",
]  # fmt: skip


class Seen(HTMLParser):
    """The tags of a page, with what could run or fetch, and the headings outside quotes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.attributes: set[str] = set()
        self.headings: list[str] = []
        self.quoted: list[str] = []
        self.depth = 0
        self._heading = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.depth += tag == "blockquote"
        if tag == "blockquote" and self.depth == 1:
            self.quoted.append("")
        self._heading = not self.depth and re.fullmatch("h[1-6]", tag) is not None
        if self._heading:
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "blockquote"
        self._heading = False

    def handle_data(self, data: str) -> None:
        if self._heading:
            self.headings[-1] += data
        if self.depth:
            self.quoted[-1] += data


def rendered(markdown: str) -> Seen:
    """As a program shows it that allows raw HTML."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return Seen(parser.render(markdown))


def image(name: str = "cat.png") -> ImageInput:
    return make_image_input(Image.new("RGB", (8, 6), "red"), name, notes=["first of 2 frames"])


def result(text: str = "A **cat**.", **more: object) -> VisionResult:
    return VisionResult(
        text,
        "demo",
        **{  # type: ignore[arg-type]
            "finish_reason": "stop",
            "usage": Usage(90, 64, 10, 5),
            "timings": Timings(prefill=0.5, time_to_first_token=0.25, generation_tps=20.0),
            "peak_memory": 1_000,
            "seen": ("8 x 6",),
            **more,
        },
    )


def conversation(hostile: str = "A **cat**.") -> list[Turn]:
    """Two turns; with `hostile` in every place that a text gets to."""
    odd = hostile if hostile != "A **cat**." else "demo"
    return [
        Turn(
            "t1",
            hostile,
            (PanelImage("p1", image(), "cat.png"), PanelImage("p2", image(hostile), hostile)),
            [
                Answer("demo", result=result(hostile)),
                Answer(odd, result=result("cut", finish_reason="length")),
            ],
            Settings(system=hostile, max_tokens=100, temperature=0.0),
        ),
        Turn("t2", "And now?", (), [Answer("demo", error=f"It failed: {hostile}")], follows=False),
    ]


def test_turn_is_exported_as_markdown() -> None:
    turn = Turn(
        "t1",
        "What is it?\n  Is it [a] cat_fish?\n\n1. Say.",
        (PanelImage("p1", image(), "cat.png"),),
        [Answer("demo", result=result("# It\n\nis a **cat**."))],
        Settings(max_tokens=100, temperature=0.0),
    )
    text = to_markdown([turn])
    shown = re.sub(r"\(data:image/png;base64,[A-Za-z0-9+/=]+\)", "(…)", text)
    # The brackets that we escape would be MathJax's delimiters.
    assert shown == (
        '<div class="mathjax_ignore tex2jax_ignore">\n\n'
        "# Conversation\n\n## Question 1\n\n"
        "> What is it?\\\n> &nbsp;&nbsp;Is it \\[a\\] cat\\_fish?\n>\n> 1\\. Say.\n\n"
        "![cat.png 8x6](…)\n\n"
        "Options: max\\_tokens 100, temperature 0.0\n\n"
        "### demo\n\n"
        "> # It\n>\n> is a **cat**.\n\n"
        "*demo · finished · 90 prompt tokens (64 image, 10 cached), 5 written, 20 tokens/s, "
        "first token after 0.25 s*\n\n</div>\n"
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer("m"), "*Not finished yet.*"),
        (Answer("m", error="No *such* model"), "**Failed:** No \\*such\\* model"),
        (Answer("m", result=result("", finish_reason="cancelled")), "*(no text)*"),
        (Answer("m", result=result("a", finish_reason="cancelled")), "· cancelled ·"),
        (Answer("m", result=result("a", finish_reason="length")), "· cut off at max\\_tokens ·"),
    ],
)
def test_exported_answer_says_how_it_ended(answer: Answer, expected: str) -> None:
    assert expected in to_markdown([Turn("t1", "What?", (), [answer])])


def test_standalone_turn_is_marked() -> None:
    said = "*Standalone question (earlier turns not sent).*"
    assert to_markdown(conversation()).count(said) == 1


def test_empty_conversation_is_exported() -> None:
    assert to_markdown([]) == "# Conversation\n"
    assert json.loads(to_json([]))["turns"] == []
    assert file_name([], "md") == "vision.md"


def check_harmless(markdown: str, quotes: int) -> Seen:
    seen = rendered(markdown)
    assert not {"script", "iframe", "details", "svg", "a"} & set(seen.tags)
    assert seen.attributes <= {"src", "alt", "start", "class", "style"}
    assert all(address.startswith("data:image/png;base64,") for address in seen.addresses)
    assert len(seen.addresses) == seen.tags.count("img") == 2
    assert len(seen.quoted) == quotes
    assert "\u202e" not in markdown
    return seen


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_cannot_break_the_export(hostile: str) -> None:
    seen = check_harmless(to_markdown(conversation(hostile)), quotes=5)
    assert [seen.headings[at] for at in (0, 1, 2, 4)] == [
        "Conversation",
        "Question 1",
        "demo",
        "Question 2",
    ]
    assert len(seen.headings) == 6


@given(st.text(alphabet="<>![]()`~*_#-=+:.|&;\\\"'/ \n\r\t1ahtps\x1b", min_size=1, max_size=60))
def test_any_text_keeps_the_structure_of_the_export(text: str) -> None:
    turns = conversation(f"x{text}x")
    seen = check_harmless(to_markdown(turns), quotes=5)
    assert len(seen.headings) == 6


@given(st.text(alphabet="<>![]()`~*_#-=+:.|&;$\\\"'/ \n\t1ax{}", max_size=60))
def test_prompt_is_exported_verbatim(prompt: str) -> None:
    prompt = f"x{prompt}x"
    page = rendered(to_markdown([Turn("t1", prompt)]))
    assert set(page.tags) <= {"h1", "h2", "blockquote", "p", "br", "div"}
    assert "".join(page.quoted).split() == prompt.split()


def test_the_same_turns_give_the_same_text() -> None:
    assert to_markdown(conversation()) == to_markdown(conversation())
    assert to_json(conversation()) == to_json(conversation())


def test_json_export_has_everything_but_the_pixels() -> None:
    turns = conversation()
    content = json.loads(to_json(turns))
    assert (content["format"], content["version"]) == (FORMAT, VERSION)
    first, second = content["turns"]
    assert first["options"] == {
        "max_tokens": 100,
        "temperature": 0.0,
        "top_p": None,
        "top_k": None,
        "min_p": None,
        "repetition_penalty": None,
        "seed": None,
        "stop": [],
        "timeout": None,
        "max_pixels": None,
        "normalize": True,
        "kv_bits": None,
        "think": None,
        "schema": None,
        "choices": None,
        "multiple": False,
    }
    assert "pictures" not in first
    assert first["images"][0] == {
        "name": "cat.png",
        "word": "cat.png",
        "width": 8,
        "height": 6,
        "sha256": turns[0].images[0].image.digest,
        "note": "first of 2 frames",
    }
    answer = first["answers"][0]
    assert answer["usage"] == {
        "prompt_tokens": 90,
        "image_tokens": 64,
        "cached_tokens": 10,
        "completion_tokens": 5,
    }
    assert answer["timings"]["time_to_first_token"] == 0.25
    assert (answer["finish_reason"], answer["state"], answer["error"]) == ("stop", "done", None)
    assert (answer["peak_memory"], answer["seen"]) == (1_000, ["8 x 6"])
    assert (second["number"], second["follows"]) == (2, False)
    failed = second["answers"][0]
    assert (failed["state"], failed["text"], failed["usage"]) == ("failed", None, None)
    assert failed["error"] == "It failed: A **cat**."


@given(st.text(max_size=30), st.text(max_size=30), st.none() | st.text(max_size=30))
def test_texts_round_trip_through_json(prompt: str, text: str, system: str | None) -> None:
    turns = [Turn("t1", prompt, (), [Answer("m", result=result(text))], Settings(system=system))]
    [turn] = json.loads(to_json(turns).encode())["turns"]
    assert (turn["prompt"], turn["answers"][0]["text"], turn["system"]) == (prompt, text, system)


def test_values_that_json_cannot_represent_can_be_exported() -> None:
    import numpy as np

    broken = result("half \ud83d", timings=Timings(generation_tps=float("inf")))
    settings = Settings(max_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.int32(1))
    text = to_json([Turn("t1", "猫?", (), [Answer("m", result=broken)], settings)])
    [turn] = json.loads(text.encode("utf-8"))["turns"]
    assert "猫?" in text
    assert turn["answers"][0]["text"] == "half \ud83d"
    assert turn["answers"][0]["timings"]["generation_tps"] is None
    assert (turn["options"]["max_tokens"], turn["options"]["temperature"]) == (3, 0.5)


@pytest.mark.parametrize(
    ("prompt", "suffix", "expected"),
    [
        ("What is in the picture?", "md", "vision-what-is-in-the-picture.md"),
        ("What is in the picture?", ".JSON", "vision-what-is-in-the-picture.json"),
        ("../../etc/passwd", "md", "vision-etc-passwd.md"),
        ("...", "md", "vision.md"),
        ("con", "md", "vision-con.md"),
        ("a\n\x00b\u202ec", "m/../d", "vision-a-b-c.md"),
        ("Größe der Katze", "md", "vision-größe-der-katze.md"),
        ("word " * 50, "", "vision-word-word-word-word-word-word-word-word"),
        ("x" * 5_000, "md", "vision.md"),
    ],
)
def test_export_file_name_is_safe(prompt: str, suffix: str, expected: str) -> None:
    assert file_name([Turn("t1", prompt)], suffix) == expected


@given(st.text())
def test_any_prompt_gives_a_valid_file_name(prompt: str) -> None:
    name = file_name([Turn("t1", prompt)], "md")
    assert re.fullmatch(r"vision(-[^\W_]+)*\.md", name)
    assert len(name.encode()) <= 60
