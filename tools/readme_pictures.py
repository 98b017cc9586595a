"""Take the README's screenshot of a real run: ``python -m tools.readme_pictures``.

JupyterLab runs in headless Chromium, and the bundled model answers. The kernel is stopped in the
middle of the last answer, so that the screenshot shows a running answer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from tests.browser.conftest import find_chromium
from tests.browser.lab import LabNotebook, LabServer

ROOT = Path(__file__).parents[1]
CELLS = (
    "%load_ext mlx_magic",
    "%%vision pictures/shapes.png pictures/word.png -o answer\nDescribe both pictures.",
    "%%vision pictures/two.png\nDescribe the picture in detail.",
)
HALF_WAY = "purple"
STEP = 0.03  # seconds
PAUSE = 250  # milliseconds
SIZE: ViewportSize = {"width": 990, "height": 1400}
SCALE = 2
MARGIN = 6
COLOURS = 128
# Hides parts of the page that a user can close, too, so that only the notebook is visible.
PLAIN = """
    .jp-Toolbar, .jp-Notebook-footer, .jp-cell-toolbar, .jp-Cell-Placeholder,
    #jp-bottom-panel, #jp-top-panel, #jp-menu-panel { display: none !important }
    .jp-Notebook-cell.jp-mod-active .jp-Collapser { visibility: hidden }
"""


def start_server(home: Path) -> LabServer:
    """Start JupyterLab with the sample images next to its notebooks."""
    server = LabServer(home)
    shutil.copytree(ROOT / "notebooks" / "pictures", server.notebooks / "pictures")
    return server


def kernel_process() -> psutil.Process:
    """Return the process of the server's only kernel."""
    [kernel] = [
        process
        for process in psutil.Process().children(recursive=True)
        if "ipykernel_launcher" in process.cmdline()
    ]
    return kernel


def run_cells(notebook: LabNotebook) -> None:
    """Run all cells, and stop the kernel in the middle of the last answer."""
    last = len(CELLS) - 1
    for number in range(last):
        notebook.run(number)
    kernel = kernel_process()
    kernel.suspend()
    try:
        notebook.start(last)
        # Slowed down, as the model would end before the browser has drawn half of the answer.
        while HALF_WAY not in notebook.output(last).inner_text():
            kernel.resume()
            time.sleep(STEP)
            kernel.suspend()
            notebook.page.wait_for_timeout(PAUSE)
        expect(notebook.cancel).to_be_visible()
        photograph(notebook.page, ROOT / "docs" / "images" / "quickstart.png")
    finally:
        kernel.resume()


def photograph(page: Page, path: Path) -> None:
    """Save a screenshot of the notebook without its surroundings."""
    page.add_style_tag(content=PLAIN)
    page.evaluate("document.activeElement.blur()")
    page.evaluate("document.fonts.ready")
    page.wait_for_timeout(300)  # the layout adapts to the window's size with a delay
    boxes = [box for cell in page.locator(".jp-CodeCell").all() if (box := cell.bounding_box())]
    left = min(box["x"] for box in boxes) - MARGIN
    top = min(box["y"] for box in boxes) - MARGIN
    right = max(box["x"] + box["width"] for box in boxes) + MARGIN
    bottom = max(box["y"] + box["height"] for box in boxes) + MARGIN
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(
        path=path,
        clip={"x": max(left, 0), "y": max(top, 0), "width": right - left, "height": bottom - top},
    )
    make_small(path)


def make_small(path: Path) -> None:
    """Save an image with few colors: a quarter of the bytes, with no visible difference."""
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(
        f"{path.relative_to(ROOT)}: {small.width} x {small.height}, {path.stat().st_size:,} bytes"
    )


@contextlib.contextmanager
def open_notebook(cells: Sequence[str], size: ViewportSize) -> Iterator[LabNotebook]:
    """Open a notebook in a new JupyterLab and Chromium, next to the sample images."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        # The screenshots show no aliases and models of the machine they are taken on.
        for name in ("MLX_MAGIC_CONFIG", "MLX_MAGIC_CACHE", "HF_HUB_CACHE"):
            os.environ[name] = str(Path(folder, name))
        server = start_server(Path(folder))
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            context = browser.new_context(viewport=size, device_scale_factor=SCALE)
            context.set_default_timeout(30_000)
            expect.set_options(timeout=30_000)
            path = server.add_notebook("tour", list(cells))
            yield LabNotebook(context.new_page(), server, path, Path(folder))
        finally:
            browser.close()
            server.close()


def main() -> None:
    """Take the screenshot."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with open_notebook(CELLS, SIZE) as notebook:
        run_cells(notebook)


if __name__ == "__main__":
    main()
