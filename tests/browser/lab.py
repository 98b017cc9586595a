"""A Jupyter server of its own, and a notebook in it as a person sees it in a browser."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal
from urllib import request as http
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import nbformat
from playwright.sync_api import Locator, Page, Request, expect

FrontEnd = Literal["lab", "notebook"]

# Notebook 7 is built of the same parts: `MLX_MAGIC_EVERY=1` looks at both.
FRONT_ENDS: list[FrontEnd] = (
    ["lab", "notebook"] if os.environ.get("MLX_MAGIC_EVERY") == "1" else ["lab"]
)

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0
"""Seconds for a server or a kernel to start."""

_nbformat: Any = nbformat  # has no type information

# News and updates would be asked for on the internet.
_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {
        "autosave": False,
        "defaultViewers": {"markdown": "Markdown Preview"},
    },
}


class LabServer:
    """JupyterLab on a free port, with folders and a token of its own.

    Parameters
    ----------
    home : Path
        Empty folder for the server's files.
    """

    def __init__(self, home: Path) -> None:
        self.notebooks = home / "notebooks"
        self.notebooks.mkdir()
        self._token = secrets.token_hex(16)
        self._log = home / "server.log"
        self._write_settings(home / "settings")
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython"),
        }
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"),
            f"--IdentityProvider.token={self._token}",
            f"--ServerApp.root_dir={self.notebooks}",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--LabApp.expose_app_in_browser=True",
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, env=environment, cwd=home, stdout=log, stderr=subprocess.STDOUT
            )
        self.url = self._wait_for_url()

    def close(self) -> None:
        """End the server and its kernels."""
        self._process.terminate()
        self._process.wait(timeout=30)

    def add_notebook(self, name: str, cells: list[str]) -> Path:
        """Write a notebook into the server's folder."""
        notebook = _nbformat.v4.new_notebook(
            cells=[_nbformat.v4.new_code_cell(code) for code in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        path = self.notebooks / f"{name}.ipynb"
        _nbformat.write(notebook, path)
        return path

    def start_kernel(self, notebook: Path) -> None:
        """Start a notebook's kernel, while its page is loaded."""
        session = {"path": notebook.name, "name": notebook.name, "type": "notebook"}
        self._ask("POST", "sessions", {**session, "kernel": {"name": "python3"}})

    def stop_kernel(self, notebook: Path) -> None:
        """End a notebook's kernel, if it has one."""
        for session in self._ask("GET", "sessions"):
            if session["path"] == notebook.name:
                self._ask("DELETE", f"sessions/{session['id']}")

    def _ask(self, method: str, what: str, body: object = None) -> Any:
        request = http.Request(
            f"{self.url}/api/{what}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self._token}"},
        )
        with urlopen(request, timeout=DEADLINE) as answer:
            return json.loads(answer.read() or "null")

    def address(self, notebook: Path, front_end: FrontEnd) -> str:
        """Return the address that opens a notebook by itself."""
        page = {"lab": "doc/tree", "notebook": "notebooks"}[front_end]
        return f"{self.url}/{page}/{notebook.name}?token={self._token}"

    def file_address(self, name: str) -> str:
        """Return the address that opens a file in JupyterLab; Markdown in its viewer.

        In a workspace of its own: the side bars that it opens would be open in later tests.
        """
        return f"{self.url}/lab/workspaces/files/tree/{name}?token={self._token}&reset"

    def write(self, path: Path, notebook: Any) -> None:
        """Write a notebook as it is."""
        _nbformat.write(notebook, path)

    def _write_settings(self, folder: Path) -> None:
        for plugin, settings in _SETTINGS.items():
            path = folder / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(settings), encoding="utf-8")

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if match := re.search(r"(http://127\.0\.0\.1:\d+)/lab\?token=", self._log.read_text()):
                try:
                    urlopen(f"{match[1]}/api", timeout=5).close()
                except URLError:
                    continue
                return match[1]
            time.sleep(0.05)
        raise AssertionError(f"JupyterLab did not start:\n{self._log.read_text()}")


# JupyterLab takes about eight seconds to load, mostly processor time, and less than one
# to open a further notebook.
_OPEN = """async (path) => {
  const { context } = await window.jupyterapp.commands.execute("docmanager:open", { path });
  await context.ready;
}"""
_CLOSE = """() => {
  for (const widget of [...window.jupyterapp.shell.widgets("main")]) {
    if (widget.context) widget.context.model.dirty = false;
    widget.dispose();
  }
}"""
_FINE = """() => window.pwned === undefined && window.jupyterapp !== undefined
    && document.querySelector(".jp-Dialog") === null"""


class LabNotebook:
    """A notebook open in JupyterLab, or in Notebook 7, which is made of the same parts.

    Parameters
    ----------
    page : playwright.sync_api.Page
        An empty page, or one in which JupyterLab has closed its notebooks.
    server : LabServer
    path : Path
        The notebook file.
    screenshots : Path
        Folder for screenshots.
    front_end : {"lab", "notebook"}
        JupyterLab or Notebook 7.
    """

    def __init__(
        self,
        page: Page,
        server: LabServer,
        path: Path,
        screenshots: Path,
        front_end: FrontEnd = "lab",
    ) -> None:
        self.page = page
        self.path = path
        self.foreign_requests: list[str] = []
        self._requests: list[str] = []
        self._host = urlsplit(server.url).netloc
        self._screenshots = screenshots
        page.on("request", self._note)
        server.start_kernel(path)
        if page.url == "about:blank":
            page.goto(server.address(path, front_end))
        else:
            page.evaluate(_OPEN, path.name)
        # A cell that is run before the kernel is there does nothing.
        kernel = page.locator(".jp-Toolbar-kernelName")
        expect(kernel).to_have_text("Python 3 (ipykernel)", timeout=DEADLINE * 1000)
        status = page.locator(".jp-Notebook-ExecutionIndicator").first
        expect(status).to_have_attribute("data-status", "idle", timeout=DEADLINE * 1000)

    def close(self) -> bool:
        """Close the notebook, and say whether the page can show another one."""
        self.page.remove_listener("request", self._note)
        if not self.page.evaluate(_FINE):
            return False
        self.page.evaluate(_CLOSE)
        return True

    @property
    def cancel(self) -> Locator:
        """The visible Cancel buttons."""
        return self.page.locator("button.jupyter-button", has_text="Cancel")

    def cell(self, number: int) -> Locator:
        """Return a cell by its place, from 0."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def output(self, number: int) -> Locator:
        """Return the output area of a cell."""
        return self.cell(number).locator(".jp-Cell-outputArea")

    def start(self, number: int) -> None:
        """Run a cell, as Ctrl+Enter does, and go on at once."""
        self.cell(number).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")

    def finish(self, number: int) -> None:
        """Wait until a cell has a number instead of a star."""
        prompt = self.cell(number).locator(".jp-InputPrompt")
        expect(prompt).to_have_text(re.compile(r"\[\d+\]:"), timeout=DEADLINE * 1000)

    def run(self, number: int) -> None:
        """Run a cell to its end."""
        self.start(number)
        self.finish(number)

    def expect_waiting(self, number: int) -> None:
        """Expect that a cell waits or runs: it shows a star."""
        expect(self.cell(number).locator(".jp-InputPrompt")).to_have_text("[*]:")

    def choose_menu(self, menu: str, *items: str) -> None:
        """Choose from the menu bar: the last item is clicked, those before it open."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=menu).click()
        for number, item in enumerate(items, start=1):
            label = self.page.locator(".lm-Menu-itemLabel", has_text=item).first
            label.click() if number == len(items) else label.hover()

    def interrupt(self) -> None:
        """Press the square button."""
        self.page.locator('[data-jp-item-name="interrupt"]').first.click()

    def saved(self) -> Any:
        """Save, and return the notebook as the file has it."""
        with self.page.expect_response(
            lambda response: response.request.method == "PUT" and "/api/contents/" in response.url
        ):
            self.page.keyboard.press("Control+s")
        return _nbformat.read(self.path, as_version=4)

    def server_requests(self, path: str) -> list[str]:
        """Return what was asked of the server itself with `path` in it."""
        return [url for url in self._requests if path in url]

    def screenshot(self, name: str) -> None:
        """Keep what the page looks like now."""
        self.page.screenshot(path=self._screenshots / f"{name}.png")

    def _note(self, request: Request) -> None:
        parts = urlsplit(request.url)
        self._requests.append(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != self._host:
            self.foreign_requests.append(request.url)
