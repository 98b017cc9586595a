"""One JupyterLab server and one Chromium for all tests here; a page and a kernel for each."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests import checkpoints

from .lab import ROOT, FrontEnd, LabNotebook, LabServer
from .panel_page import PanelPage

OpenNotebook = Callable[..., LabNotebook]
OpenPanel = Callable[..., PanelPage]

_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # A camera that shows a moving pattern, and nobody who must allow it.
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)


def find_chromium() -> str | None:
    """Return Chromium's path: ``CHROMIUM`` or the first that the system has."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start Chromium without a window."""
    path = find_chromium()
    if path is None:
        reason = "no Chromium was found: set CHROMIUM to its path"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """Start JupyterLab."""
    server = LabServer(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that inspects well; the scripted backend does not read its weights."""
    return checkpoints.good(tmp_path_factory.mktemp("model"))


@pytest.fixture
def open_notebook(
    browser: Browser, server: LabServer, request: pytest.FixtureRequest
) -> Iterator[OpenNotebook]:
    """Open a notebook of the given cells in a fresh page."""
    name = re.sub(r"\W+", "-", request.node.name).strip("-")
    screenshots = ROOT / "build" / "screenshots"
    screenshots.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(10_000)
    expect.set_options(timeout=10_000)
    opened: list[LabNotebook] = []

    def open_cells(
        *cells: str, front_end: FrontEnd = "lab", path: Path | None = None
    ) -> LabNotebook:
        path = path or server.add_notebook(name, list(cells))
        page = context.new_page()
        opened.append(LabNotebook(page, server, path, screenshots, front_end))
        return opened[-1]

    yield open_cells
    for notebook in opened:
        notebook.screenshot(f"{name}-end")
    context.close()
    for notebook in opened:
        server.stop_kernel(notebook.path)


@pytest.fixture
def models(model: Path) -> Path:
    """As `model`, with another one beside it."""
    if not model.with_name("other").exists():
        checkpoints.good(model.with_name("other"))
    return model


@pytest.fixture
def open_panel(open_notebook: OpenNotebook) -> OpenPanel:
    """Open a notebook, run its first cell, and the second one, which shows a panel."""

    def open_cells(setup: str, *cells: str, front_end: FrontEnd = "lab") -> PanelPage:
        notebook = open_notebook(setup, "%vision panel", *cells, front_end=front_end)
        notebook.page.set_viewport_size({"width": 1100, "height": 1300})
        notebook.run(0)
        notebook.run(1)
        panel = PanelPage(notebook)
        expect(panel.root).to_be_visible()
        return panel

    return open_cells
