"""Take the pictures of the panel: ``python -m tools.panel_pictures``.

JupyterLab runs in headless Chromium and the bundled model answers, once under another
name to compare with.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, ViewportSize, expect, sync_playwright

from tests.browser.conftest import find_chromium
from tests.browser.lab import LabNotebook
from tools.readme_pictures import COLOURS, PLAIN, ROOT, SCALE, start_server

CELLS = (
    "%load_ext mlx_magic\n"
    "import mlx_magic, shutil, tempfile\n"
    "folder = shutil.copytree(mlx_magic.demo_model(), tempfile.mkdtemp() + '/copy')",
    "%vision panel",
    "mlx_magic.pool.load(folder, alias='copy');",
)
SIZE: ViewportSize = {"width": 990, "height": 1500}
PICTURES = ROOT / "notebooks" / "pictures"
README = ROOT / "docs" / "images" / "panel.png"


def main() -> None:
    """Take them all."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = start_server(Path(folder))
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            context = browser.new_context(viewport=SIZE, device_scale_factor=SCALE)
            context.set_default_timeout(30_000)
            expect.set_options(timeout=30_000)
            path = server.add_notebook("tour", list(CELLS))
            _tour(LabNotebook(context.new_page(), server, path, Path(folder)))
        finally:
            browser.close()
            server.close()


def _tour(notebook: LabNotebook) -> None:
    page = notebook.page
    notebook.run(0)
    notebook.run(1)
    panel = page.locator(".mlxm-panel")
    panel.get_by_role("button", name="Load", exact=True).first.click()
    expect(panel.get_by_role("button", name="Unload")).to_be_visible()
    _keep(page, panel.locator(".mlxm-models").locator(".."), PICTURES / "panel-models.png")

    _choose(page, "shapes.png", "word.png")
    prompt = page.locator(".mlxm-prompt textarea")
    prompt.fill("Describe both pictures.")
    expect(panel.get_by_role("button", name="Run")).to_be_enabled()
    _keep(page, panel.locator(".mlxm-composer"), PICTURES / "panel-ask.png")

    prompt.press("Control+Enter")
    _answered(panel, 1)
    prompt.fill("How many shapes are in the first picture?")
    prompt.press("Control+Enter")
    _answered(panel, 2)
    _keep(page, panel.locator(".mlxm-conversation"), PICTURES / "panel-answer.png")

    notebook.run(2)
    panel.get_by_role("button", name="New conversation").click()
    panel.get_by_label("Compare models").check()
    panel.get_by_label("Second").select_option(label="copy · vision · loaded")
    _choose(page, "two.png", "number.png")
    prompt.fill("Describe both pictures.")
    prompt.press("Control+Enter")
    _answered(panel, 2)
    _keep(page, panel.locator(".mlxm-conversation"), PICTURES / "panel-compare.png")
    _keep(page, panel, README)


def _choose(page: Page, *names: str) -> None:
    page.locator(".mlxm-panel input[type=file]").set_input_files([PICTURES / n for n in names])
    expect(page.locator(".mlxm-tray img")).to_have_count(len(names))


def _answered(panel: Locator, count: int) -> None:
    expect(panel.get_by_text(" written, ")).to_have_count(count)


def _keep(page: Page, part: Locator, path: Path) -> None:
    """Keep what a part of the page looks like."""
    page.add_style_tag(content=PLAIN)
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    page.evaluate("document.fonts.ready")
    part.screenshot(path=path)
    # A quarter of the bytes; the difference cannot be seen.
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {small.width} x {small.height}")


if __name__ == "__main__":
    main()
