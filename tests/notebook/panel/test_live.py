"""From a generation to the messages of its answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.errors import GenerationError
from mlx_magic.notebook.panel.control.live_answer import LONGEST_SHOWN, LiveAnswer
from mlx_magic.notebook.panel.state.conversation import Answer
from mlx_magic.testing import ManualClock


class Page:
    """Does what the browser's module does with the messages."""

    def __init__(self) -> None:
        self.html: list[str] = []
        self.tail = ""
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

    def state(self) -> dict[str, Any]:
        return self.live.state()


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_text_comes_as_what_is_new(asked: Asked) -> None:
    asked.write("One ")
    asked.write("two")
    assert asked.page.tail == "One two"
    assert asked.page.html == []


@pytest.mark.parametrize("text", ["there", "there.\n\nAnd"])
def test_text_whose_message_fails_is_taken_in_once(
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


def test_a_finished_block_comes_as_safe_html(asked: Asked) -> None:
    asked.write("**One** <script>\n\nTwo")
    assert asked.page.html == ["<p><strong>One</strong> &lt;script&gt;</p>\n"]
    assert asked.page.tail == "Two"


def test_a_new_phase_is_shown_at_once_and_progress_twice_a_second(asked: Asked) -> None:
    asked.live.update()
    asked.generation.enter("loading")
    asked.live.update()
    asked.generation.advance(1_000_000, 4_000_000)
    asked.live.update()
    assert asked.page.lines == ["loading the model …"]
    asked.clock.advance(0.5)
    asked.live.update()
    assert asked.page.lines[-1] == "loading the model · 1.0 MB of 4.0 MB"


def test_nothing_new_sends_nothing(asked: Asked) -> None:
    asked.write("One")
    before = asked.page.messages
    for _ in range(20):
        asked.clock.advance(1.0)
        asked.live.update()
    assert asked.page.messages == before


def test_a_slow_model_does_not_fill_the_wire(asked: Asked) -> None:
    """One token a second at 15 looks: 100 tokens may take 8.8 KB and the head start."""
    for token in range(100):
        asked.write(f"word{token} ", tokens=1)
    assert asked.page.messages * 520 < 20_000 + 88 * 100 + 2 * 520


def test_its_end_is_told_once_and_has_everything(asked: Asked) -> None:
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


def test_a_failed_answer_says_why_and_keeps_what_was_written(asked: Asked) -> None:
    asked.write("One <b>")
    asked.generation.fail(GenerationError("demo failed:\nno luck", model="demo"))
    asked.live.update()
    state = asked.state()
    assert state["state"] == "failed"
    assert state["error"] == "demo failed: no luck"
    assert "One &lt;b&gt;" in state["blocks"][0]


def test_a_huge_answer_is_shown_in_part_and_says_so(asked: Asked) -> None:
    asked.write("x" * 1_000_000, tokens=1_000_000)
    asked.generation.finish("length")
    asked.live.update()
    state = asked.state()
    assert sum(map(len, state["blocks"])) < LONGEST_SHOWN + 1_000
    assert "1,000,000 characters" in state["blocks"][-1]
    assert asked.answer.result is not None
    assert len(asked.answer.result.text) == 1_000_000


def test_an_answer_longer_than_is_shown_is_seen_to_go_on(asked: Asked) -> None:
    asked.write("x" * (LONGEST_SHOWN + 10), tokens=30_000)
    asked.write("more")
    shown = list(asked.page.html), asked.page.tail
    asked.write("and more")
    assert (asked.page.html, asked.page.tail) == shown
    assert asked.page.lines[-1] == "writing · 30,100 tokens · the first 100,000 characters shown"
    assert asked.state()["status"] == asked.page.lines[-1]


@given(st.lists(st.text("ab\n`*\x1b[1m ", max_size=40), max_size=30))
def test_the_page_always_has_what_the_state_says(pieces: list[str]) -> None:
    asked = Asked()
    for piece in pieces:
        asked.write(piece)
    state = asked.state()
    assert asked.page.html == state["blocks"]
    assert asked.page.tail == state["tail"]
