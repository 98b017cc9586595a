"""One JupyterLab server and one Chromium for all tests here; a notebook and a kernel for each."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests import checkpoints

from .lab import ROOT, FrontEnd, LabNotebook, LabServer
from .panel_page import PanelPage

OpenNotebook = Callable[..., LabNotebook]
OpenPanel = Callable[..., PanelPage]

_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # A fake camera with a moving pattern that needs no permission.
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


class Pages:
    """Pages for tests: that of the previous test if it was left clean, or new ones."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._kept: Page | None = None

    def take(self, *, new: bool) -> Page:
        """Return an empty page, or one of JupyterLab without notebooks."""
        page, self._kept = self._kept, None
        if page is not None and new:
            page.context.close()
        if page is None or new:
            context = self._browser.new_context()
            context.set_default_timeout(10_000)
            page = context.new_page()
        page.set_viewport_size({"width": 1100, "height": 800})
        return page

    def give_back(self, page: Page, *, good: bool) -> None:
        """Keep a page for the next test, or close it."""
        if good and self._kept is None:
            page.context.clear_permissions()
            self._kept = page
        else:
            page.context.close()


@pytest.fixture(scope="session")
def pages(browser: Browser) -> Pages:
    """Pages that are handed from test to test."""
    expect.set_options(timeout=10_000)
    return Pages(browser)


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record failed tests, so that their pages are not reused."""
    report = yield
    item.stash[_FAILED] = report.failed or item.stash.get(_FAILED, False)
    return report


@pytest.fixture
def open_notebook(
    pages: Pages, server: LabServer, request: pytest.FixtureRequest
) -> Iterator[OpenNotebook]:
    """Open a notebook of the given cells: in a fresh page, if what is done there needs it."""
    name = re.sub(r"\W+", "-", request.node.name).strip("-")
    screenshots = ROOT / "build" / "screenshots"
    screenshots.mkdir(parents=True, exist_ok=True)
    opened: list[tuple[LabNotebook, bool]] = []

    def open_cells(
        *cells: str, front_end: FrontEnd = "lab", path: Path | None = None, own_page: bool = False
    ) -> LabNotebook:
        path = path or server.add_notebook(name, list(cells))
        own_page = own_page or bool(opened) or front_end != "lab"
        page = pages.take(new=own_page)
        opened.append((LabNotebook(page, server, path, screenshots, front_end), own_page))
        return opened[-1][0]

    yield open_cells
    failed = request.node.stash.get(_FAILED, True)
    for notebook, own_page in opened:
        notebook.screenshot(f"{name}-end")
        good = not failed and not own_page and notebook.close()
        pages.give_back(notebook.page, good=good)
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

    def open_cells(
        setup: str, *cells: str, front_end: FrontEnd = "lab", own_page: bool = False
    ) -> PanelPage:
        notebook = open_notebook(
            setup, "%vision panel", *cells, front_end=front_end, own_page=own_page
        )
        notebook.page.set_viewport_size({"width": 1100, "height": 1300})
        notebook.run(0)
        notebook.run(1)
        panel = PanelPage(notebook)
        expect(panel.root).to_be_visible()
        return panel

    return open_cells
