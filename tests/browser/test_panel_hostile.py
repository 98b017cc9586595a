"""Hostile model output, in a cell and in a panel: nothing runs, nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, Page, expect

from .conftest import OpenPanel
from .panel_page import IMAGES, PanelPage, scripted
from .test_lab import HOSTILE, assert_harmless

pytestmark = pytest.mark.browser

TERMINAL = "\x1b[31mred\x1b[0m \x1b]8;;http://hostile.invalid\x07link\x1b]8;;\x07 \x1b[2J"
BACKWARDS = "safe \u202egpj.exe\u202c \u2066\u2067 end"
REFERENCE = "![r][1] <http://hostile.invalid/a>\n\n[1]: http://hostile.invalid/r.png\n\n"
NAME = "<img src=x onerror=\"window.pwned='name'\">.png"
SETUP = f"""
script.pieces = {[*(HOSTILE.split(" ")), chr(10) * 2, REFERENCE, TERMINAL, BACKWARDS]!r}
script.pieces = [piece + " " for piece in script.pieces] + ["x" * 1_000] * 1_000
"""
QUESTION = "%%vision img --max-tokens 1000000\nBe evil."

WATCH = """() => {
  window.longest = 0;
  new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) window.longest = Math.max(longest, duration);
  }).observe({ entryTypes: ["longtask"] });
}"""
BUSY = """() => {
  setTimeout(() => { for (const end = performance.now() + 200; performance.now() < end; ); });
}"""
BLOCKED = 400
"""Milliseconds that the page's main thread may be kept here; the aim is 100, on an idle machine."""


def assert_clean(page: Page, panel: PanelPage) -> None:
    """Expect that nothing has run, and that no control sequence has reached the page."""
    assert_harmless(page)
    for number in (1, 2):
        text = panel.notebook.output(number).text_content() or ""
        assert not set("\x1b\x07\u202e\u202c\u2066\u2067") & set(text)


def test_hostile_output_is_harmless_in_panel_and_cell(open_panel: OpenPanel, models: Path) -> None:
    panel = open_panel(scripted(models, hold="decode") + SETUP, QUESTION)
    page, notebook = panel.page, panel.notebook
    name = FilePayload(name=NAME, mimeType="image/png", buffer=_bytes("two.png"))
    panel.tray.locator("input[type=file]").set_input_files([name])
    panel.expect_images(NAME)
    page.evaluate(WATCH)
    panel.ask(NAME)
    expect(panel.text(1, "smol")).to_contain_text("harmless")
    expect(panel.text(1, "smol")).to_contain_text("x" * 20_000)
    # It can be used meanwhile.
    panel.prompt.fill("still here")
    panel.button("Options").click()
    expect(panel.root.get_by_role("spinbutton", name="Max tokens")).to_be_visible()
    panel.button("Options").click()
    panel.screenshot("hostile-writing")
    assert_clean(page, panel)
    panel.cancel.click()
    panel.expect_ended(1, "smol")
    longest = page.evaluate("longest")
    print(f"longest task while 1 MB without a space came: {longest:.0f} ms")
    assert longest < BLOCKED
    expect(panel.text(1, "smol")).to_contain_text("only the first 100,000 are shown")
    expect(panel.turn(1)).to_contain_text(NAME)
    assert_clean(page, panel)
    wide = "(node) => node.scrollWidth > node.clientWidth + 1"
    assert not panel.root.evaluate(wide)
    panel.screenshot("hostile")

    # What is copied as a cell is what was asked, and no more.
    panel.button("Copy as cell").click()
    assert NAME in panel.clipboard()

    notebook.start(2)
    expect(notebook.output(2)).to_contain_text("harmless")
    assert_clean(page, panel)
    notebook.output(2).get_by_role("button", name="Cancel", exact=True).click()
    notebook.finish(2)
    expect(notebook.output(2)).to_contain_text("harmless")
    assert_clean(page, panel)
    notebook.screenshot("panel-hostile-cell")
    assert notebook.foreign_requests == []

    # The same text as HTML does run and fetch: the checks above can fail.
    with page.expect_request("http://hostile.invalid/**"):
        page.evaluate(
            "(bad) => { panel = document.createElement('div'); panel.innerHTML = bad;"
            " document.body.append(panel) }",
            HOSTILE,
        )
    page.wait_for_function("window.pwned !== undefined")
    page.evaluate(BUSY)
    page.wait_for_function("longest > 150")


def _bytes(name: str) -> bytes:
    return (IMAGES / name).read_bytes()
