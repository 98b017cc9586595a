"""What a person sees in JupyterLab: answers, the Cancel button, interrupts, hostile output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from .conftest import OpenNotebook

pytestmark = pytest.mark.browser

ANSWER = "Two **red** squares."
HOSTILE = (
    "<script>window.pwned = 'script'</script>"
    "<img src=x onerror=\"window.pwned = 'onerror'\">"
    "<svg onload=\"window.pwned = 'onload'\"></svg>"
    "<iframe src='http://hostile.invalid/frame'></iframe>\n\n"
    "[click me](javascript:window.pwned='link') ![p](http://hostile.invalid/p.png)\n\n"
    "<style>@import url(http://hostile.invalid/s.css)</style> harmless"
)
QUESTION = "%%vision img -o answer --max-tokens 1000000\nWhat is this?"


def setup(model: Path, answer: str = ANSWER, hold: str | None = None) -> str:
    """Return a first cell: the extension, an image, and a backend that follows a script."""
    return f"""
%load_ext mlx_magic
%config VisionMagics.model = {str(model)!r}
from PIL import Image
from mlx_magic.testing import use_scripted
img = Image.new("RGB", (40, 20), "red")
script = use_scripted({answer!r}, hold={hold!r})
"""


def assert_harmless(page: Page) -> None:
    """Expect that nothing of a hostile answer ran, and that nothing waits for a click."""
    assert page.evaluate("window.pwned") is None
    outputs = page.locator(".jp-OutputArea-output")
    dangerous = "script, iframe, svg[onload], [onerror], [href^='javascript'], [src^='http']"
    expect(outputs.locator(dangerous)).to_have_count(0)


def test_answer_has_thumbnail_and_text_and_survives_saving(
    open_notebook: OpenNotebook, model: Path
) -> None:
    notebook = open_notebook(setup(model), QUESTION)
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator("img")).to_be_visible()
    expect(output.locator("strong", has_text="red")).to_be_visible()
    expect(notebook.cancel).to_have_count(0)
    notebook.screenshot("answer")

    saved = notebook.saved().cells[1].outputs
    assert [kept.output_type for kept in saved] == ["execute_result"]
    assert "widget-view" not in json.dumps(saved)
    assert "data:image/" in saved[0].data["text/html"]
    assert notebook.foreign_requests == []


# Cancel must work in both: each run tests both.
@pytest.mark.parametrize("front_end", ["lab", "notebook"])
def test_cancel_button_stops_the_answer_and_the_queued_cell_runs(
    open_notebook: OpenNotebook, model: Path, front_end: str
) -> None:
    cells = (setup(model, hold="decode"), QUESTION, "print('then', answer.finish_reason)")
    notebook = open_notebook(*cells, front_end=front_end)
    notebook.run(0)
    notebook.start(1)
    expect(notebook.output(1)).to_contain_text("squares")
    notebook.start(2)
    notebook.expect_waiting(2)
    notebook.screenshot(f"{front_end}-writing")
    notebook.cancel.click()
    notebook.finish(1)
    notebook.finish(2)
    expect(notebook.output(2)).to_have_text("then cancelled")
    expect(notebook.output(1)).to_contain_text("cancelled")
    expect(notebook.output(1)).to_contain_text("squares")
    expect(notebook.cancel).to_have_count(0)
    notebook.screenshot(f"{front_end}-cancelled")


def test_nested_cell_can_be_cancelled(open_notebook: OpenNotebook, model: Path) -> None:
    notebook = open_notebook(setup(model, hold="prefill"), f"%%time\n{QUESTION}")
    notebook.run(0)
    notebook.start(1)
    expect(notebook.output(1)).to_contain_text("reading the prompt")
    notebook.cancel.click()
    notebook.finish(1)
    expect(notebook.output(1)).to_contain_text("cancelled")


def test_interrupt_stops_the_queue_and_keeps_the_partial_answer(
    open_notebook: OpenNotebook, model: Path
) -> None:
    notebook = open_notebook(
        setup(model, hold="decode"),
        QUESTION,
        "print('must not run')",
        "print(answer.finish_reason, 'squares' in answer.text)",
    )
    notebook.run(0)
    notebook.start(1)
    expect(notebook.output(1)).to_contain_text("squares")
    notebook.start(2)
    notebook.expect_waiting(2)
    notebook.interrupt()
    notebook.finish(1)
    notebook.screenshot("interrupted")
    notebook.run(3)
    expect(notebook.output(3)).to_have_text("cancelled True")
    expect(notebook.cell(2).locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[ ?\]:"))
    expect(notebook.output(2)).not_to_contain_text("must not run")


def test_hostile_answer_neither_runs_nor_fetches(open_notebook: OpenNotebook, model: Path) -> None:
    forms = ("markdown", "text", "json", "raw")
    questions = [f"%%vision -f {form} --max-tokens 1000000\nBe evil." for form in forms]
    plain = f"script.release()\nfrom mlx_magic import ask\nask('Again.', model={str(model)!r})"
    unguarded = f"from IPython.display import HTML\nHTML({HOSTILE!r})"
    notebook = open_notebook(
        setup(model, answer=HOSTILE, hold="decode"), *questions, plain, unguarded
    )
    notebook.run(0)
    for number, form in enumerate(forms, start=1):
        notebook.start(number)
        expect(notebook.output(number)).to_contain_text("harmless")
        assert_harmless(notebook.page)  # while it is written
        notebook.cancel.click()
        notebook.finish(number)
        expect(notebook.output(number)).to_contain_text("harmless")
        notebook.screenshot(f"hostile-{form}")
        assert_harmless(notebook.page)
    notebook.run(5)
    expect(notebook.output(5)).to_contain_text("harmless")
    assert_harmless(notebook.page)
    assert notebook.foreign_requests == []
    # The same text, shown as it is, does run and fetch: the checks above can fail.
    with notebook.page.expect_request("http://hostile.invalid/**"):
        notebook.run(6)
    assert notebook.page.evaluate("window.pwned") is not None
