"""From a generation to the messages of its answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlx_magic.engine.generation import Generation
from mlx_magic.engine.places.grounding import Grounding
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.errors import GenerationError
from mlx_magic.images.opening import open_images
from mlx_magic.notebook.panel.control.live_answer import LONGEST_SHOWN, LiveAnswer
from mlx_magic.notebook.panel.state.conversation import Answer
from mlx_magic.testing import ManualClock


class Page:
    """Does what the browser's module does with the messages."""

    def __init__(self) -> None:
        self.html: list[str] = []
        self.tail = ""
        self.thought = ""
        self.lines: list[str] = []
        self.messages = 0

    def delta(self, turn: str, index: int, before: int, text: str, status: str = "") -> None:
        assert before == len(self.tail)
        self.tail += text
        self.lines += [status] if status else []
        self.messages += 1

    def blocks(self, turn: str, index: int, before: int, html: list[str], tail: str) -> None:
        assert before == len(self.html)
        self.html += html
        self.tail = tail
        self.messages += 1

    def status(self, turn: str, index: int, status: str, fraction: float) -> None:
        self.lines.append(status)
        self.messages += 1

    def thoughts(self, turn: str, index: int, before: int, text: str) -> None:
        assert before == len(self.thought)
        self.thought += text
        self.messages += 1

    def answer(self, turn: str, index: int, answer: dict[str, Any]) -> None:
        self.html = list(answer["blocks"])
        self.tail, self.thought = answer["tail"], answer["thoughts"]
        self.messages += 1


class Asked:
    """An answer on its way, its page, and the clock of both."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.page = Page()
        self.generation = Generation(GenerationRequest("?"), clock=self.clock)
        self.answer = Answer("demo", self.generation)
        self.live = LiveAnswer("t1", 0, self.answer, self.page, clock=self.clock)
        self.written = 0

    def write(self, text: str, tokens: int = 50) -> bool:
        self.written += tokens
        self.generation.report(GenerationChunk("decode", text=text, completion_tokens=self.written))
        self.clock.advance(1.0)
        return self.live.update()

    def think(self, thoughts: str, **more: Any) -> bool:
        self.written += 50
        self.generation.report(
            GenerationChunk("decode", reasoning=thoughts, completion_tokens=self.written, **more)
        )
        self.clock.advance(1.0)
        return self.live.update()

    def state(self) -> dict[str, Any]:
        return self.live.state()


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_only_new_text_is_sent(asked: Asked) -> None:
    asked.write("One ")
    asked.write("two")
    assert asked.page.tail == "One two"
    assert asked.page.html == []


@pytest.mark.parametrize("text", ["there", "there.\n\nAnd"])
def test_text_of_a_failed_message_is_sent_once(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no page")

    asked.write("Who ")
    with monkeypatch.context() as broken:
        broken.setattr(asked.page, "delta", fail)
        broken.setattr(asked.page, "blocks", fail)
        with pytest.raises(RuntimeError, match="no page"):
            asked.write(text)
    asked.clock.advance(1.0)
    asked.live.update()
    state = asked.state()
    assert "".join([*state["blocks"], state["tail"]]).count("there") == 1


def test_finished_block_is_sent_as_safe_html(asked: Asked) -> None:
    asked.write("**One** <script>\n\nTwo")
    assert asked.page.html == ["<p><strong>One</strong> &lt;script&gt;</p>\n"]
    assert asked.page.tail == "Two"


def test_new_phase_is_sent_at_once_and_progress_twice_a_second(asked: Asked) -> None:
    asked.live.update()
    asked.generation.enter("loading")
    asked.live.update()
    asked.generation.advance(1_000_000, 4_000_000)
    asked.live.update()
    assert asked.page.lines == ["loading the model …"]
    asked.clock.advance(0.5)
    asked.live.update()
    assert asked.page.lines[-1] == "loading the model · 1.0 MB of 4.0 MB"


def test_no_change_sends_nothing(asked: Asked) -> None:
    asked.write("One")
    before = asked.page.messages
    for _ in range(20):
        asked.clock.advance(1.0)
        asked.live.update()
    assert asked.page.messages == before


def test_slow_model_sends_few_messages(asked: Asked) -> None:
    """One token a second at 15 looks: 100 tokens may take 8.8 KB and the head start."""
    for token in range(100):
        asked.write(f"word{token} ", tokens=1)
    assert asked.page.messages * 520 < 20_000 + 88 * 100 + 2 * 520


def test_end_of_an_answer_is_sent_once_and_is_complete(asked: Asked) -> None:
    asked.write("One **two**")
    asked.generation.finish("stop")
    assert asked.live.update()
    assert not asked.live.update()
    state = asked.state()
    assert state["state"] == "done"
    assert state["blocks"] == ["<p>One <strong>two</strong></p>\n"]
    assert state["text"] == "One **two**"
    assert state["tail"] == ""
    assert "50 written" in state["footer"]


def test_a_cancelled_answer_keeps_its_text(asked: Asked) -> None:
    asked.write("One")
    asked.generation.cancel()
    asked.generation.stopped()
    asked.live.update()
    state = asked.state()
    assert state["state"] == "cancelled"
    assert state["text"] == "One"
    assert state["footer"].startswith("cancelled")


def test_failed_answer_has_its_error_and_partial_text(asked: Asked) -> None:
    asked.write("One <b>")
    asked.generation.fail(GenerationError("demo failed:\nno luck", model="demo"))
    asked.live.update()
    state = asked.state()
    assert state["state"] == "failed"
    assert state["error"] == "demo failed: no luck"
    assert "One &lt;b&gt;" in state["blocks"][0]


def test_huge_answer_is_shown_in_part_with_a_note(asked: Asked) -> None:
    asked.write("x" * 1_000_000, tokens=1_000_000)
    asked.generation.finish("length")
    asked.live.update()
    state = asked.state()
    assert sum(map(len, state["blocks"])) < LONGEST_SHOWN + 1_000
    assert "1,000,000 characters" in state["blocks"][-1]
    assert asked.answer.result is not None
    assert len(asked.answer.result.text) == 1_000_000


def test_answer_longer_than_shown_still_shows_progress(asked: Asked) -> None:
    asked.write("x" * (LONGEST_SHOWN + 10), tokens=30_000)
    asked.write("more")
    shown = list(asked.page.html), asked.page.tail
    asked.write("and more")
    assert (asked.page.html, asked.page.tail) == shown
    assert asked.page.lines[-1] == "writing · 30,100 tokens · the first 100,000 characters shown"
    assert asked.state()["status"] == asked.page.lines[-1]


@given(st.lists(st.text("ab\n`*\x1b[1m ", max_size=40), max_size=30))
def test_page_content_always_equals_the_state(pieces: list[str]) -> None:
    asked = Asked()
    for piece in pieces:
        asked.write(piece)
    state = asked.state()
    assert asked.page.html == state["blocks"]
    assert asked.page.tail == state["tail"]


def test_thoughts_are_sent_apart_from_the_text(asked: Asked) -> None:
    asked.think("So \x1b[31mit ")
    asked.think("is <red>")
    assert (asked.page.thought, asked.page.tail) == ("So it is <red>", "")
    assert asked.page.lines[-1].startswith("thinking ")
    asked.write("Red.")
    asked.write(" Yes.")
    assert (asked.page.thought, asked.page.tail) == ("So it is <red>", "Red. Yes.")
    assert asked.page.lines[-1].startswith("writing ")
    asked.generation.finish("stop")
    assert asked.live.update()
    state = asked.state()
    assert state["thoughts"] == "So it is <red>"
    assert state["text"] == "Red. Yes."


def test_text_that_was_thoughts_is_taken_back(asked: Asked) -> None:
    asked.write("So it\n\nis red")
    asked.think(".", all_reasoning=True)
    asked.clock.advance(1.0)
    asked.live.update()
    assert (asked.page.html, asked.page.tail) == ([], "")
    assert asked.page.thought == "So it\n\nis red."
    asked.write("Red.")
    assert asked.page.tail == "Red."


def test_places_are_drawn_above_the_answer_when_it_ends() -> None:
    asked = Asked()
    image = open_images([Image.new("RGB", (40, 20))])[0]
    asked.generation.prepared(GenerationRequest("?", images=(image,)))
    text = '{"bbox_2d": [0, 0, 500, 500], "label": "<b>cat</b>"}'
    known = Grounding(scale=1000.0)
    asked.generation.report(GenerationChunk("vision", grounding=known))
    asked.generation.report(GenerationChunk("decode", text=text, completion_tokens=9))
    asked.generation.finish("stop")
    asked.live.update()
    drawing, answer = asked.live.state()["blocks"]
    assert drawing.count("<svg") == 1
    assert "&lt;b&gt;cat" in drawing
    assert "<b>" not in drawing
    assert "bbox_2d" in answer
