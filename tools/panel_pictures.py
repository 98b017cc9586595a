"""Take the screenshots of the panel: ``python -m tools.panel_pictures``.

JupyterLab runs in headless Chromium, and the bundled model answers under two names, for the
comparison.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Locator, Page, ViewportSize, expect

from tests.browser.lab import LabNotebook
from tools.readme_pictures import PLAIN, ROOT, make_small, open_notebook

CELLS = (
    "%load_ext mlx_magic\n"
    "import mlx_magic, shutil, tempfile\n"
    "folder = shutil.copytree(mlx_magic.demo_model(), tempfile.mkdtemp() + '/copy')",
    "%vision panel",
    "mlx_magic.pool.load(folder, alias='copy');",
)
SIZE: ViewportSize = {"width": 990, "height": 1500}
IMAGES = ROOT / "notebooks" / "pictures"
README = ROOT / "docs" / "images" / "panel.png"


def main() -> None:
    """Take all screenshots."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with open_notebook(CELLS, SIZE) as notebook:
        _tour(notebook)


def _tour(notebook: LabNotebook) -> None:
    page = notebook.page
    notebook.run(0)
    notebook.run(1)
    panel = page.locator(".mlxm-panel")
    panel.get_by_role("button", name="Load", exact=True).first.click()
    expect(panel.get_by_role("button", name="Unload")).to_be_visible()
    _keep(page, panel.locator(".mlxm-models").locator(".."), IMAGES / "panel-models.png")

    _choose(page, "shapes.png", "word.png")
    prompt = page.locator(".mlxm-prompt textarea")
    prompt.fill("Describe both pictures.")
    expect(panel.get_by_role("button", name="Run")).to_be_enabled()
    _keep(page, panel.locator(".mlxm-composer"), IMAGES / "panel-ask.png")

    prompt.press("Control+Enter")
    _answered(panel, 1)
    prompt.fill("How many shapes are in the first picture?")
    prompt.press("Control+Enter")
    _answered(panel, 2)
    _keep(page, panel.locator(".mlxm-conversation"), IMAGES / "panel-answer.png")

    notebook.run(2)
    panel.get_by_role("button", name="New conversation").click()
    panel.get_by_label("Compare models").check()
    panel.get_by_label("Second").select_option(label="copy · vision · loaded")
    _choose(page, "two.png", "number.png")
    prompt.fill("Describe both pictures.")
    prompt.press("Control+Enter")
    _answered(panel, 2)
    _keep(page, panel.locator(".mlxm-conversation"), IMAGES / "panel-compare.png")
    _keep(page, panel, README)


def _choose(page: Page, *names: str) -> None:
    page.locator(".mlxm-panel input[type=file]").set_input_files([IMAGES / n for n in names])
    expect(page.locator(".mlxm-tray img")).to_have_count(len(names))


def _answered(panel: Locator, count: int) -> None:
    expect(panel.get_by_text(" written, ")).to_have_count(count)


def _keep(page: Page, part: Locator, path: Path) -> None:
    """Save a screenshot of a part of the page."""
    page.add_style_tag(content=PLAIN)
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    page.evaluate("document.fonts.ready")
    part.screenshot(path=path)
    make_small(path)


if __name__ == "__main__":
    main()
