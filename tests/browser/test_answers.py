"""Hostile answers in a real page: nothing is typeset, fetched, laid over it or linked elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from mlx_magic.notebook.display import formulas
from mlx_magic.notebook.display.sanitize import to_html, to_markdown
from tests.hostile.answers import ANSWERS, HONEST, HOST

from .conftest import OpenNotebook
from .lab import FRONT_ENDS, LabNotebook, LabServer
from .test_lab import setup

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

MAKE = r"""
from PIL import Image
from IPython.display import display
from mlx_magic.images.image import make_image_input
from mlx_magic.engine.result import VisionResult
from mlx_magic.notebook.display.render import bundle
from mlx_magic.notebook.display.tables import Table
from mlx_magic.notebook.panel.state.conversation import Answer, PanelImage, Turn
from mlx_magic.notebook.panel.state.export import to_markdown
from tests.hostile.answers import ANSWERS, HONEST

def result(text, **more):
    image = make_image_input(Image.new("RGB", (8, 6), "red"), text[:300], notes=[text[:300]])
    return VisionResult(text, text[:300] if more.pop("odd", True) else "demo", "length",
                        images=(image,), **more)

def show(mime, results):
    for result in results:
        display({mime: bundle(result)[mime]}, raw=True)
"""
NAMES = list(ANSWERS)
PARTS = [NAMES[at : at + 40] for at in range(0, len(NAMES), 40)]
"""JupyterLab shows 50 outputs of a cell."""
HTML = [f"show('text/html', [result(ANSWERS[name]) for name in {part}])" for part in PARTS]
HONEST_HTML = """
for text in list(ANSWERS.values())[::7]:
    show("text/html", [result(text, format="text")])
    display({"text/html": Table((text, "b"), ((text, text),), text)._repr_html_()}, raw=True)
show("text/html", [result(text, odd=False) for text in HONEST.values()])
"""
MARKDOWN = [f"show('text/markdown', [result(ANSWERS[name]) for name in {part}])" for part in PARTS]
HONEST_MARKDOWN = """
show("text/markdown", [result(text, odd=False) for text in HONEST.values()])
"""
CELLS = [*HTML, HONEST_HTML, *MARKDOWN, HONEST_MARKDOWN]
EXPORT = """
import pathlib
turns = [
    Turn(f"t{at}", text, (PanelImage("p", result(text).images[0], text),),
         [Answer(text[:300], result=result(text)), Answer("demo", error=text)])
    for at, text in enumerate([*ANSWERS.values(), *HONEST.values()])
]
pathlib.Path("exported.md").write_text(to_markdown(turns), "utf-8")
"""
UNGUARDED = rf"""
from IPython.display import HTML, Markdown
display(HTML(r"<div>$\unicode[x;background-image:url(http://{HOST}/html)]{{x41}}$</div>"))
display(Markdown(r"$\unicode[x;background-image:url(http://{HOST}/markdown)]{{x41}}$"))
"""


def count(show: Callable[[str], str], texts: Iterable[str]) -> int:
    """How many formulas are typeset: those that only draw."""
    return sum(show(text).count(f'<span class="{formulas.SET}"') for text in texts)


def expected() -> list[int]:
    """How many formulas each of the cells shows."""
    parts = [[ANSWERS[name] for name in part] for part in PARTS]
    return [
        count(show, texts) for show in (to_html, to_markdown) for texts in (*parts, HONEST.values())
    ]


# Every element of an output lies within that output's area; links are absolute.
LOOK = r"""(areas) => {
  const faults = [];
  const absolute = /^(https?:\/\/[^\/\\?#]|mailto:[^\/\\?#])/i;
  for (const area of areas) {
    for (const link of area.querySelectorAll("a[href], area, form, base, meta")) {
      const href = link.getAttribute("href") ?? "";
      if (!absolute.test(href) && !link.matches(".jp-InternalAnchorLink"))
        faults.push(`link ${href}`);
    }
    const active = "script, iframe, object, embed, style, link, svg, video, audio, input, button";
    for (const node of area.querySelectorAll(active)) faults.push(`element ${node.outerHTML}`);
    for (const node of area.querySelectorAll("*")) {
      const look = getComputedStyle(node);
      if (look.position === "fixed") faults.push(`fixed ${node.outerHTML.slice(0, 200)}`);
      if (look.backgroundImage.includes("http")) faults.push(`fetches ${look.backgroundImage}`);
      for (const { name } of node.attributes)
        if (name.startsWith("on")) faults.push(`${name} ${node.outerHTML.slice(0, 200)}`);
    }
    area.scrollIntoView({ block: "center" });
    const box = area.getBoundingClientRect();
    for (let x = 5; x < innerWidth; x += 130)
      for (let y = 5; y < innerHeight; y += 70) {
        const beside = x < box.left - 1 || x > box.right + 1;
        const inside = !beside && y > box.top - 1 && y < box.bottom + 1;
        const met = document.elementFromPoint(x, y);
        if (!inside && met && area !== met && area.contains(met))
          faults.push(`over the page at ${x}, ${y}: ${met.outerHTML.slice(0, 200)}`);
      }
  }
  return faults;
}"""
# MathJax must have typeset only the ordinary formulas of our outputs.
SET_WRONG = """(areas) => areas.flatMap((area) => [...area.querySelectorAll("mjx-container")]
  .filter((node) => !node.closest(".mathjax_process")).map((node) => node.textContent))"""


def look(page: Page, areas: Locator, *, typeset: int) -> None:
    """Expect that outputs are harmless, and `typeset` formulas typeset."""
    # MathJax comes with the first formula: on a busy machine that takes a while.
    expect(areas.locator("mjx-container")).to_have_count(typeset, timeout=60_000)
    assert areas.evaluate_all(LOOK) == []
    assert areas.evaluate_all(SET_WRONG) == []
    expect(areas.locator("[data-mjx-error], mjx-merror")).to_have_count(0)
    assert page.evaluate("window.pwned") is None


def check(notebook: LabNotebook) -> None:
    """Expect that each cell but the first and the last shows harmless outputs."""
    for cell, number in enumerate(expected(), start=1):
        notebook.cell(cell).scroll_into_view_if_needed()
        areas = notebook.cell(cell).locator(".jp-OutputArea-output")
        expect(areas).not_to_have_count(0)
        look(notebook.page, areas, typeset=number)
        notebook.screenshot(f"hostile-answers-{cell}")
    assert notebook.foreign_requests == []
    assert notebook.server_requests("shutdown") == []


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_hostile_answers_are_harmless_live_and_in_an_opened_notebook(
    open_notebook: OpenNotebook, server: LabServer, model: Path, front_end: Any
) -> None:
    notebook = open_notebook(MAKE, *CELLS, UNGUARDED, front_end=front_end, own_page=True)
    for cell in range(len(CELLS) + 1):
        notebook.run(cell)
    check(notebook)
    saved = notebook.saved()

    # A notebook from elsewhere: its outputs were not made here, so they are not trusted.
    saved.cells[0].source = "# not trusted"
    other = server.notebooks / "of-somebody-else.ipynb"
    server.write(other, saved)
    again = open_notebook(path=other, front_end=front_end)
    check(again)

    # Formulas as they came would fetch: the checks above can fail.
    with notebook.page.expect_request(f"http://{HOST}/html"):
        notebook.run(len(CELLS) + 1)
    with pytest.raises(AssertionError):
        assert notebook.foreign_requests == []


def test_exported_conversation_is_harmless_in_the_markdown_viewer(
    open_notebook: OpenNotebook, server: LabServer
) -> None:
    notebook = open_notebook(MAKE, EXPORT, own_page=True)
    notebook.run(0)
    notebook.run(1)
    page = notebook.page
    (server.notebooks / "bad.md").write_text(
        rf"$\unicode[x;background-image:url(http://{HOST}/viewer)]{{x41}}$", "utf-8"
    )
    page.goto(server.file_address("exported.md"))
    viewer = page.locator(".jp-MarkdownViewer .jp-RenderedMarkdown")
    look(page, viewer, typeset=count(to_markdown, [*ANSWERS.values(), *HONEST.values()]))
    notebook.screenshot("hostile-answers-exported")
    assert notebook.foreign_requests == []
    with page.expect_request(f"http://{HOST}/viewer"):
        page.goto(server.file_address("bad.md"))


def test_hostile_answer_is_harmless_while_it_streams(
    open_notebook: OpenNotebook, model: Path
) -> None:
    text = "\n\n".join([*ANSWERS.values(), *HONEST.values(), "the end\n\n"])
    text = text.encode("utf-8", "replace").decode()
    question = "%%vision --max-tokens 1000000\nBe evil."
    notebook = open_notebook(setup(model, answer=text, hold="decode"), question, "%vision panel")
    notebook.run(0)
    notebook.start(1)
    area = notebook.cell(1).locator(".jp-OutputArea-output .widget-vbox").first
    expect(area).to_contain_text("unicode")
    assert area.locator("mjx-container").count() == 0
    links = notebook.cell(1).locator(".jp-Cell-outputArea a[href]")
    for link in links.all():
        assert re.match(r"https?://\w|mailto:\w", link.get_attribute("href") or "")
    assert notebook.page.evaluate("window.pwned") is None
    notebook.cancel.click()
    notebook.finish(1)
    assert notebook.foreign_requests == []
