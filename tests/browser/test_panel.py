"""The panel during answers, cancellation, running cells, and page reloads.

The backend follows a script here, and writes until it is told to stop.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from .conftest import OpenPanel
from .lab import FRONT_ENDS, FrontEnd
from .panel_page import PanelPage, expect_labels, scripted

pytestmark = pytest.mark.browser

BOTH = pytest.mark.parametrize("front_end", FRONT_ENDS)
LET_END = "script.hold = None"
HOLD = "script.hold = 'decode'"
LOST = "The kernel was restarted or the connection is lost."


def expect_cancelled(panel: PanelPage, number: int, model: str = "smol") -> None:
    """Expect that an answer was cancelled and kept its text."""
    panel.expect_ended(number, model)
    expect(panel.answer(number, model)).to_contain_text("cancelled")
    expect(panel.text(number, model)).to_contain_text("squares")


@BOTH
def test_answer_can_be_cancelled_and_the_panel_stays_usable(
    open_panel: OpenPanel, models: Path, front_end: FrontEnd
) -> None:
    panel = open_panel(scripted(models, hold="decode"), LET_END, front_end=front_end)
    expect(panel.cancel).to_be_disabled()
    expect(panel.cancel).to_have_attribute("title", "Nothing is running")
    panel.choose("two.png")
    panel.expect_images("two.png")
    panel.ask("What is this?")
    expect(panel.text(1, "smol")).to_contain_text("squares")
    panel.expect_growing(1, "smol")
    expect(panel.answer(1, "smol")).to_contain_text(re.compile(r"writing · [\d,]+ tokens"))
    expect(panel.status).to_have_text(re.compile("smol: writing"))
    expect(panel.button("Run")).to_be_disabled()
    # It waits for the answer to end, and can be cancelled while it waits.
    expect(panel.row("smol").get_by_role("button", name="Unload", exact=True)).to_be_enabled()
    expect(panel.row("smol").get_by_role("button", name="Pin", exact=True)).to_be_enabled()
    expect_labels(panel)
    panel.screenshot(f"{front_end}-writing")
    panel.cancel.click()
    expect_cancelled(panel, 1)
    expect(panel.cancel).to_be_disabled()
    panel.screenshot(f"{front_end}-cancelled")

    panel.ask("And now?")
    panel.expect_growing(2, "smol")
    panel.prompt.press("Escape")
    expect_cancelled(panel, 2)

    panel.notebook.run(2)
    panel.ask("Once more?")
    panel.expect_ended(3, "smol")
    expect(panel.answer(3, "smol")).not_to_contain_text("cancelled")
    expect(panel.text(3, "smol")).to_have_text("Two red squares.")
    expect(panel.text(3, "smol").locator("strong")).to_have_text("red")


def test_compared_answers_can_be_cancelled_individually_or_together(
    open_panel: OpenPanel, models: Path
) -> None:
    panel = open_panel(scripted(models, hold="decode"), LET_END)
    panel.root.get_by_label("Compare models").check()
    panel.select("Second", "other")
    panel.ask("Which is it?")
    for model in ("smol", "other"):
        # Both run at once: neither waits for the other.
        expect(panel.text(1, model)).to_contain_text("squares")
    panel.screenshot("comparing")
    panel.button("Cancel smol").click()
    expect_cancelled(panel, 1, "smol")
    panel.expect_growing(1, "other")
    expect(panel.cancel).to_be_enabled()
    panel.screenshot("one-cancelled")
    panel.cancel.click()
    expect_cancelled(panel, 1, "other")

    panel.ask("And both?")
    for model in ("smol", "other"):
        expect(panel.text(2, model)).to_contain_text("squares")
    panel.cancel.click()
    for model in ("smol", "other"):
        expect_cancelled(panel, 2, model)
    expect(panel.cancel).to_be_disabled()
    panel.screenshot("both-cancelled")
    panel.button("New conversation").click()
    expect(panel.conversation).to_contain_text("Answers appear here.")


def test_cell_and_two_panels_run_concurrently(open_panel: OpenPanel, models: Path) -> None:
    question = "%%vision img -o answer\nFrom a cell?"
    cells = ("%vision panel", question, "print(answer.finish_reason)")
    first = open_panel(scripted(models, hold="decode"), *cells)
    notebook = first.notebook
    notebook.run(2)
    second = PanelPage(notebook, 2)
    expect(second.root).to_be_visible()

    notebook.start(3)
    expect(notebook.output(3)).to_contain_text("squares")
    for panel in (first, second):
        expect(panel.status).to_have_text(re.compile("smol: writing"))
        expect(panel.cancel).to_be_disabled()  # the cell's answer is the cell's
    first.ask("From the first?")
    expect(first.answer(1, "smol")).to_be_visible()
    second.ask("From the second?")
    expect(second.answer(1, "smol")).to_be_visible()
    notebook.expect_waiting(3)
    notebook.screenshot("panel-beside-a-cell")

    notebook.output(3).get_by_role("button", name="Cancel", exact=True).click()
    notebook.finish(3)
    notebook.run(4)
    expect(notebook.output(4)).to_have_text("cancelled")
    first.expect_growing(1, "smol")
    first.cancel.click()
    expect_cancelled(first, 1)
    second.expect_growing(1, "smol")
    expect(second.cancel).to_be_enabled()
    second.cancel.click()
    expect_cancelled(second, 1)


@BOTH
def test_reloaded_page_continues_and_a_restarted_kernel_is_reported(
    open_panel: OpenPanel, models: Path, front_end: FrontEnd
) -> None:
    panel = open_panel(scripted(models), HOLD, front_end=front_end)
    notebook, page = panel.notebook, panel.page
    panel.ask("What is this?")
    panel.expect_ended(1, "smol")
    notebook.run(2)
    panel.choose("two.png")
    panel.expect_images("two.png")
    panel.ask("And this?")
    panel.expect_growing(2, "smol")
    panel.choose("word.png")
    panel.expect_images("word.png")
    notebook.saved()
    panel.prompt.fill("half a questi")
    page.reload()
    expect(panel.text(2, "smol")).to_contain_text("squares", timeout=30_000)
    panel.expect_growing(2, "smol")
    expect(panel.text(1, "smol")).to_have_text("Two red squares.")
    expect(panel.turn(2).get_by_role("list", name="Images of this")).to_contain_text("two.png")
    panel.expect_images("word.png")
    expect(panel.prompt).to_have_value("half a questi")
    panel.screenshot(f"{front_end}-reloaded")
    panel.cancel.click()
    expect_cancelled(panel, 2)

    page.locator('[data-jp-item-name="restart"]').first.click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    banner = panel.root.get_by_role("alert").filter(has_text=LOST)
    expect(banner).to_be_visible()
    expect(panel.text(1, "smol")).to_have_text("Two red squares.")
    panel.screenshot(f"{front_end}-restarted")
    assert not panel.prompt.evaluate("n => { n.focus(); return document.activeElement === n }")
    notebook.run(0)
    notebook.run(1)
    expect(banner).to_have_count(0)
    panel.ask("Alive?")
    panel.expect_ended(1, "smol")
    expect(panel.turn(2)).to_have_count(0)


def test_panel_is_usable_by_keyboard_only(open_panel: OpenPanel, models: Path) -> None:
    panel = open_panel(scripted(models, hold="decode"), "'the next one'")
    page = panel.page
    panel.prompt.focus()
    page.keyboard.type("What is a 'b' dd?")
    # From the prompt to Run, and each stop on the way is seen.
    way = tab_to(panel, panel.button("Run"))
    assert way == ["Model", "Compare models", "Run"], way
    page.keyboard.press("Enter")
    panel.expect_growing(1, "smol")
    # Run is disabled now; the focus goes on from its place.
    assert tab_to(panel, panel.cancel) == ["Cancel"]
    page.keyboard.press("Space")
    expect_cancelled(panel, 1)

    panel.prompt.focus()
    page.keyboard.type("Another?")
    page.keyboard.press("Tab")
    expect(panel.model).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(panel.model.locator("option:checked")).to_have_text(re.compile("^other"))
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+Enter")
    panel.expect_growing(2, "other")
    expect(panel.prompt).to_have_value("")
    page.keyboard.press("Escape")
    expect_cancelled(panel, 2, "other")

    # What was typed last reaches the kernel after Ctrl-Enter, and is not there again.
    for number, word in enumerate(("First?", "Second, somewhat longer?", "Third?"), start=3):
        panel.prompt.focus()
        page.keyboard.type(word)
        page.keyboard.press("Control+Enter")
        panel.expect_growing(number, "other")
        page.keyboard.press("Escape")
        panel.expect_ended(number, "other")
        expect(panel.turn(number)).to_contain_text(word)
        expect(panel.prompt).to_have_value("")

    # The options are folded away: none of them is a stop before they are opened.
    way = tab_to(panel, panel.button("Options"))
    assert way[-2:] == ["New conversation", "Options"], way
    page.keyboard.press("Enter")
    tab_to(panel, panel.root.get_by_role("spinbutton", name="Max tokens"))
    page.keyboard.press("Control+a")
    page.keyboard.type("7")
    panel.screenshot("keyboard")
    tab_to(panel, panel.prompt, key="Shift+Tab")
    page.keyboard.type("Briefly?")
    page.keyboard.press("Control+Enter")
    panel.expect_ended(6, "other")
    expect(panel.answer(6, "other")).to_contain_text("7 written")

    copy = panel.answer(6, "other").get_by_role("button", name="Copy", exact=True)
    tab_to(panel, copy, key="Shift+Tab")
    page.keyboard.press("Enter")
    expect(panel.answer(6, "other").get_by_text("Copied")).to_be_visible()
    # None of the notebook's own keys has done anything.
    expect(page.locator(".jp-Notebook .jp-CodeCell")).to_have_count(3)
    expect(panel.notebook.cell(1).locator(".jp-InputPrompt")).to_have_text("[2]:")


def tab_to(panel: PanelPage, wanted: Locator, key: str = "Tab") -> list[str]:
    """Press Tab until something has the focus; return the names of the stops on the way."""
    stops = []
    for _ in range(40):
        panel.page.keyboard.press(key)
        focused = panel.page.locator(":focus")
        stops.append(focused.evaluate(_NAME))
        outline = focused.evaluate("n => getComputedStyle(n).outlineStyle")
        assert outline != "none", f"the focus is not seen on {stops[-1]}"
        if wanted.evaluate("n => n === document.activeElement"):
            return stops
    raise AssertionError(f"not reached: {stops}")


_NAME = """(node) => node.ariaLabel || node.labels?.[0]?.innerText || node.innerText
  || node.placeholder || node.tagName"""
LOOKS = """
Two squares, side by side:

- a **red** one
- a `blue` one

```python
squares = 2
```

| what | how many |
|---|---|
| squares | 2 |

"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_panel_screenshots(open_panel: OpenPanel, models: Path, theme: str) -> None:
    panel = open_panel(scripted(models, LOOKS), HOLD)
    page = panel.page
    if theme == "dark":
        panel.notebook.choose_menu("Settings", "Theme", "JupyterLab Dark")
        expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    panel.choose("two.png", "word.png")
    panel.expect_images("two.png", "word.png")
    panel.ask("What is in these pictures?")
    panel.expect_ended(1, "smol")
    panel.notebook.run(2)
    panel.root.get_by_label("Compare models").check()
    panel.select("Second", "other")
    panel.choose("number.png")
    panel.expect_images("number.png")
    panel.ask("And in this one?")
    for model in ("smol", "other"):
        expect(panel.text(2, model)).to_contain_text("Two squares")
    panel.button("Cancel smol").click()
    panel.expect_growing(2, "other")
    panel.choose("shapes.png", "digit.png")
    panel.expect_images("shapes.png", "digit.png")
    panel.button("Options").click()
    for name, width in (("wide", 1100), ("narrow", 420)):
        page.set_viewport_size({"width": width, "height": 2000})
        panel.root.scroll_into_view_if_needed()
        panel.screenshot(f"{theme}-{name}")
        too_wide = "(node) => node.scrollWidth > node.clientWidth + 1"
        assert not panel.root.evaluate(too_wide), f"the panel is cut off where it is {name}"
    panel.cancel.click()
    expect_labels(panel)
    if theme == "dark":  # the server would keep it for the tests that follow
        page.set_viewport_size({"width": 1100, "height": 1300})
        panel.notebook.choose_menu("Settings", "Theme", "JupyterLab Light")
        expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "true")
