"""Hostile answers in HTML that nbconvert wrote, with its MathJax: nothing fetched, nothing run."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest
from nbconvert import HTMLExporter
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from mlx_magic.engine.result import VisionResult
from mlx_magic.images.image import make_image_input
from mlx_magic.notebook.display.render import bundle
from tests.hostile.answers import ANSWERS, HONEST, HOST

from .test_answers import LOOK

MATHJAX = Path("/usr/share/javascript/mathjax")
"""Debian's libjs-mathjax: what nbconvert's pages load from a server that is not reached here."""

# Without MathJax's own "Safe": only our defense is tested.
ADDRESS = "https://cdn.example/mathjax/MathJax.js?config=TeX-AMS_CHTML-full"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not MATHJAX.is_dir(), reason="libjs-mathjax is not installed"),
]


def exported(kinds: tuple[str, ...], *more: str) -> str:
    """Return a page with an output for each answer; only these kinds of it are in the notebook."""
    image = make_image_input(Image.new("RGB", (8, 6), "red"), "a.png")
    output: Any = nbformat.v4.new_output
    outputs = []
    for text in (*ANSWERS.values(), *HONEST.values()):
        text = text.encode("utf-8", "replace").decode()
        made = bundle(VisionResult(text, text[:300], "length", images=(image,)))
        data = {kind: made[kind] for kind in kinds}
        outputs.append(output("display_data", data=data))
    for text in more:
        outputs.append(output("display_data", data={"text/html": text}))
    v4: Any = nbformat.v4
    cell = v4.new_code_cell("%%vision", outputs=outputs)
    notebook = v4.new_notebook(cells=[cell])
    page, _ = HTMLExporter(mathjax_url=ADDRESS).from_notebook_node(notebook)
    return str(page)


@pytest.fixture
def page(browser: Browser) -> Page:
    return browser.new_page()


def opened(page: Page, html: str, folder: Path) -> list[str]:
    """Open a page until MathJax has ended; return the addresses that it asked for."""
    asked: list[str] = []

    def answer(route: Route) -> None:
        parts = urlsplit(route.request.url)
        if parts.netloc == "cdn.example":
            route.fulfill(path=MATHJAX / parts.path.removeprefix("/mathjax/"))
            return
        asked.append(route.request.url)
        route.abort()

    page.route("http*://**/*", answer)
    file = folder / "exported.html"
    file.write_text(html, "utf-8")
    page.goto(file.as_uri())
    page.wait_for_function("window.MathJax && MathJax.Hub && MathJax.isReady", timeout=60_000)
    page.evaluate("() => new Promise((done) => MathJax.Hub.Queue(done))")
    # Of nbconvert itself: RequireJS and Mermaid.
    return [address for address in asked if "cdnjs" not in address]


@pytest.mark.parametrize("kind", ["text/html", "text/markdown"])
def test_hostile_answers_are_harmless_in_exported_html(
    kind: str, page: Page, tmp_path: Path
) -> None:
    assert opened(page, exported((kind,)), tmp_path) == []
    areas = page.locator(".jp-OutputArea-output")
    expect(areas).to_have_count(len(ANSWERS) + len(HONEST))
    # Added by nbconvert and MathJax.
    page.evaluate(
        """() => document.querySelectorAll('a.anchor-link, script[type^="math/tex"]')
          .forEach((node) => node.remove())"""
    )
    assert areas.evaluate_all(LOOK) == []
    assert page.evaluate("window.pwned") is None
    # Ordinary formulas are typeset there, too.
    assert page.locator(".MathJax_CHTML, .mjx-chtml").count() > 0


def test_unescaped_formula_would_fetch(page: Page, tmp_path: Path) -> None:
    bad = rf"<div>$\style{{background-image:url(http://{HOST}/html)}}{{x}}$</div>"
    assert f"http://{HOST}/html" in opened(page, exported(("text/html",), bad), tmp_path)
