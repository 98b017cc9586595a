"""The live view, without a browser: what its widgets hold as an answer grows."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import ipywidgets as widgets
import pytest
from PIL import Image

from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.images.opening import open_images
from mlx_magic.model_pool.model_info import Load
from mlx_magic.notebook.display import terminal
from mlx_magic.notebook.display.live_view import TerminalView, WidgetView
from mlx_magic.notebook.display.phase_line import phase_line
from mlx_magic.testing import ManualClock


@pytest.fixture
def view(generation: Generation, clock: ManualClock) -> Iterator[WidgetView]:
    view = WidgetView(generation, clock=clock)
    yield view
    view.close()


def all_widgets(view: WidgetView) -> list[Any]:
    found: list[Any] = []

    def walk(widget: Any) -> None:
        found.append(widget)
        for child in getattr(widget, "children", ()):
            walk(child)

    walk(view._box)
    return found


def shown(view: WidgetView) -> str:
    text = " ".join(w.value for w in all_widgets(view) if isinstance(w, widgets.HTML))
    return html.unescape(re.sub(r"<[^>]*>", "", text))


def write(generation: Generation, text: str, count: int) -> None:
    generation.report(GenerationChunk("decode", text=text, completion_tokens=count))


def tick(view: WidgetView, clock: ManualClock) -> None:
    clock.advance(1.0)
    view.update()


def test_view_has_a_cancel_button(view: WidgetView) -> None:
    [button] = [w for w in all_widgets(view) if isinstance(w, widgets.Button)]
    assert button.description == "Cancel"
    assert not button.disabled


def test_unusable_cancel_button_is_disabled_with_the_reason(generation: Generation) -> None:
    view = WidgetView(generation, why_no_click="Use the kernel's interrupt.")
    assert view.button.disabled
    assert "interrupt" in view.button.tooltip
    assert "Use the kernel's interrupt." in shown(view)
    view.close()


def test_text_is_shown_as_it_is_generated(
    view: WidgetView, generation: Generation, clock: ManualClock
) -> None:
    write(generation, "It is <b>red", 3)
    tick(view, clock)
    assert "It is <b>red" in shown(view)
    assert "<b>" not in view._tail.value
    write(generation, " & round.", 5)
    tick(view, clock)
    assert "It is <b>red & round." in shown(view)


def test_finished_blocks_are_rendered_as_markdown_and_sent_once(
    view: WidgetView, generation: Generation, clock: ManualClock
) -> None:
    write(generation, "**One**\n\nTwo", 4)
    tick(view, clock)
    first, tail = view._text.children
    assert "<strong>One</strong>" in first.value
    assert "Two" in tail.value
    write(generation, " more", 5)
    tick(view, clock)
    assert view._text.children[0] is first


def test_burst_of_text_is_sent_in_small_parts_and_complete(
    view: WidgetView, generation: Generation, clock: ManualClock
) -> None:
    words = [f"word{number}" for number in range(2_000)]
    write(generation, "harmless " + "x" * 1_000_000, 1)
    clock.advance(1)
    view.update()
    assert "harmless" in shown(view)
    assert len(all_widgets(view)) < 20

    generation = Generation(GenerationRequest(prompt="What?"), clock=clock)
    view = WidgetView(generation, clock=clock)
    write(generation, " ".join(words), 10_000)
    for _ in range(20):
        clock.advance(1)
        view.update()
    text = re.sub(r"\s", "", shown(view))
    assert "".join(words) in text
    view.close()


def test_hostile_text_stays_text(
    view: WidgetView, generation: Generation, clock: ManualClock
) -> None:
    write(generation, "<img src=x onerror=alert(1)>\n\n![x](http://a.b/c.png)\n\n\x1b[31mred", 9)
    tick(view, clock)
    for widget in all_widgets(view):
        if isinstance(widget, widgets.HTML):
            assert "<img" not in widget.value
            assert "\x1b" not in widget.value


def test_images_are_shown_once_before_the_first_token(
    view: WidgetView, generation: Generation, clock: ManualClock
) -> None:
    images = tuple(open_images(Image.new("RGB", (30, 20), "red"), name="img"))
    generation.prepared(GenerationRequest(prompt="What?", images=images))
    generation.make_thumbnails()
    view.update()
    assert "img · 30 × 20" in shown(view)  # noqa: RUF001 - the sign for sizes
    before = view._box.children
    tick(view, clock)
    assert view._box.children is before or view._box.children == before


def test_phase_is_shown(view: WidgetView, generation: Generation, clock: ManualClock) -> None:
    assert "waiting" in shown(view)
    generation.report(GenerationChunk("vision", seen=("128 x 128",)))
    tick(view, clock)
    assert "looking at the picture at 128 x 128" in shown(view)
    generation.report(GenerationChunk("prefill", prompt_read=1000, prompt_tokens=2000))
    tick(view, clock)
    assert "reading the prompt · 1,000 of 2,000 tokens" in shown(view)
    write(generation, "x", 1)
    tick(view, clock)
    assert "writing" in shown(view)


def test_load_shows_its_bytes(clock: ManualClock) -> None:
    load = Load("big", clock=clock)
    load.enter("loading")
    load.advance(1_200_000_000, 4_000_000_000, "loading weights")
    assert phase_line(load.progress) == "loading weights · 1.2 GB of 4.0 GB"
    view = WidgetView(load, clock=clock)
    assert "1.2 GB of 4.0 GB" in shown(view)
    view.close()


def test_close_leaves_no_widget_in_the_kernel(generation: Generation, clock: ManualClock) -> None:
    before = set(widgets.widget._instances)
    view = WidgetView(generation, clock=clock)
    images = tuple(open_images(Image.new("RGB", (30, 20)), name="img"))
    generation.prepared(GenerationRequest(prompt="What?", images=images))
    generation.make_thumbnails()
    for count in range(1, 40):
        write(generation, "some words and\n\n" * 3, count)
        tick(view, clock)
    view.close()
    assert set(widgets.widget._instances) == before


def test_terminal_gets_the_text_as_it_is_generated(
    generation: Generation, capsys: pytest.CaptureFixture[str]
) -> None:
    view = TerminalView(generation)
    view.update()
    assert capsys.readouterr().out == ""
    write(generation, "It \x1b[31mis", 2)
    view.update()
    assert capsys.readouterr().out == "It is"
    write(generation, " red", 3)
    view.leave(alone=False)
    assert capsys.readouterr().out == " red\n"


def test_download_progress_is_completed_before_the_text(
    generation: Generation, view: WidgetView, clock: ManualClock
) -> None:
    generation.enter("downloading")
    seen = set()
    for second in range(600):
        generation.advance(second * 10**7, 6 * 10**9)
        tick(view, clock)
        seen.add(view._status.value)
    assert len(seen) > 100
    assert "6.0 GB of 6.0 GB" in shown(view)
    generation.enter("loading")
    view.update()
    assert "loading" in shown(view), "a new phase is shown at once"
    write(generation, "A", 1)
    tick(view, clock)
    assert view._tail.value


def think(generation: Generation, thoughts: str, count: int, **more: Any) -> None:
    generation.report(
        GenerationChunk("decode", reasoning=thoughts, completion_tokens=count, **more)
    )


def folds(view: WidgetView) -> list[Any]:
    return [w for w in all_widgets(view) if isinstance(w, widgets.Accordion)]


def test_thoughts_are_folded_and_apart_from_the_text(
    view: WidgetView, generation: Generation, clock: ManualClock
) -> None:
    tick(view, clock)
    assert not folds(view)
    think(generation, "So <b>it is", 3)
    tick(view, clock)
    assert "thinking …" in shown(view)
    [fold] = folds(view)
    assert fold.selected_index is None
    assert fold.titles == ("Thinking",)
    assert "So &lt;b&gt;it is" in fold.children[0].children[-1].value
    write(generation, "Red.", 5)
    tick(view, clock)
    assert "writing …" in shown(view)
    assert "Red." in view._tail.value
    assert [fold] == folds(view)


def test_text_that_was_thoughts_moves_into_the_fold(
    view: WidgetView, generation: Generation, clock: ManualClock
) -> None:
    write(generation, "So it is.\n\nAnd", 5)
    tick(view, clock)
    think(generation, " red.", 6, all_reasoning=True)
    write(generation, "Red.", 7)
    tick(view, clock)
    tick(view, clock)
    assert view._text.children == (view._tail,)
    assert html.unescape(re.sub(r"<[^>]*>", "", view._tail.value)) == "Red."
    [fold] = folds(view)
    assert "And red." in fold.children[0].children[-1].value


def test_view_of_thoughts_closes_every_widget(generation: Generation, clock: ManualClock) -> None:
    view = WidgetView(generation, clock=clock)
    think(generation, "So it is.\n\nAnd", 5)
    tick(view, clock)
    [fold] = folds(view)
    parts = [fold, *fold.children, *fold.children[0].children]
    assert len(parts) == 4
    view.close()
    assert all(part.comm is None for part in parts)


def test_terminal_shows_thoughts_dim(
    generation: Generation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    view = TerminalView(generation)
    think(generation, "So \x1b[31mit ", 2)
    view.update()
    think(generation, "is.\n", 3)
    view.update()
    assert capsys.readouterr().out == "\x1b[2mSo it\x1b[22m\x1b[2m is.\x1b[22m"
    write(generation, "Red", 4)
    view.leave(alone=False)
    assert capsys.readouterr().out == "\n\nRed\n"


def test_output_that_is_no_terminal_gets_the_text_only(
    generation: Generation, capsys: pytest.CaptureFixture[str]
) -> None:
    view = TerminalView(generation)
    think(generation, "So it is.", 2)
    view.update()
    write(generation, "Red", 4)
    view.leave(alone=False)
    assert capsys.readouterr().out == "Red\n"
