"""Run a notebook in the terminal, and print its cells and their outputs as they arrive.

Usage: run_demo.py NOTEBOOK PAGE. The executed notebook is written to PAGE as HTML.
"""

from __future__ import annotations

import html
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

WIDTH = 78
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Transcript:
    """Prints cells and their outputs; a streamed answer is printed once.

    While a cell runs, its view sends the text so far as the value of an HTML widget, and moves
    each finished paragraph into a new widget. Values with a role are not text of the answer: the
    phase (``status``) is shown until there is text.
    """

    def __init__(self) -> None:
        self._answer = ""  # streamed and printed text of the running cell
        self._paragraph = ""  # its unfinished paragraph
        self._has_status = False

    def cell(self, source: str) -> None:
        """Print a cell that starts to run."""
        self._write(f"\n{'─' * WIDTH}\n{textwrap.indent(source, '  ▏ ', lambda _: True)}\n\n")

    def text(self, markdown: str) -> None:
        """Print a text cell."""
        self._write(f"\n{markdown}\n")

    def message(self, kind: str, content: dict[str, Any]) -> None:
        """Print the output in a message from the kernel, if any."""
        if kind in {"comm_open", "comm_msg"}:
            value = content["data"].get("state", {}).get("value")
            if isinstance(value, str):
                self._widget(value, new=kind == "comm_open")
        elif kind == "stream":
            self._end_answer()
            self._write(content["text"])
        elif kind in {"display_data", "execute_result"} and WIDGET_VIEW not in content["data"]:
            self._output(content["data"].get("text/plain", ""))
        elif kind == "error":
            self._end_answer()
            self._write(f"{content['ename']}: {content['evalue']}\n")

    def _widget(self, value: str, *, new: bool) -> None:
        text = html.unescape(re.sub(r"<[^>]*>", "", value))
        if 'role="status"' in value:
            self._show_status(text)
        elif text and 'role="' not in value:
            self._stream(text)
            if new:  # a finished paragraph
                self._stream(self._paragraph.rstrip("\n") + "\n\n")
                self._paragraph = ""

    def _stream(self, paragraph: str) -> None:
        """Print the new part of a growing paragraph."""
        if not self._answer:
            paragraph = paragraph.lstrip()
        if paragraph.startswith(self._paragraph):
            new = paragraph[len(self._paragraph) :]
            self._write(new)
            self._answer += new
            self._paragraph = paragraph

    def _output(self, text: str) -> None:
        """Print an output; of the static result after a streamed answer, only the rest."""
        # JSON is streamed as generated, but shown indented, which is a different text.
        same = text.lstrip().startswith(self._answer.strip()[:20])
        rest = rest_of(text, self._answer) if same else None
        if rest is None:
            self._end_answer()
            rest = text
        self._write(rest.rstrip("\n") + "\n")
        self._answer = self._paragraph = ""

    def _end_answer(self) -> None:
        if self._answer:
            self._write("\n")
        self._answer = self._paragraph = ""

    def _show_status(self, text: str) -> None:
        if sys.stdout.isatty() and not self._answer:
            print(f"\r\x1b[K{text}", end="", flush=True)
            self._has_status = True

    def _write(self, text: str) -> None:
        if self._has_status:
            print("\r\x1b[K", end="")
            self._has_status = False
        print(text, end="", flush=True)


def rest_of(text: str, start: str) -> str | None:
    """Return the text after `start`, ignoring spaces; None if `text` does not start with it."""
    place = 0
    for character in start:
        if character.isspace():
            continue
        while place < len(text) and text[place].isspace():
            place += 1
        if not text.startswith(character, place):
            return None
        place += 1
    return text[place:]


class StreamingClient(NotebookClient):
    """Executes a notebook, and passes each message of the kernel to a `Transcript`."""

    transcript: Transcript

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        """Print the message, then process it as nbclient does."""
        self.transcript.message(msg["msg_type"], msg["content"])
        return super().process_message(msg, cell, cell_index)


def run(path: Path) -> nbformat.NotebookNode:
    """Execute and print the notebook; return it with its outputs.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell failed that must not fail.
    """
    notebook: nbformat.NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = StreamingClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.transcript = Transcript()
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                client.transcript.text(cell.source)
            elif cell.cell_type == "code":
                client.transcript.cell(cell.source)
                client.execute_cell(cell, index)
    return notebook


def write_page(notebook: nbformat.NotebookNode, page: Path) -> None:
    """Write the executed notebook as one self-contained HTML file."""
    exporter = HTMLExporter(require_js_url="", jquery_url="", mathjax_url="")
    body, _ = exporter.from_notebook_node(notebook)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(body, encoding="utf-8")


def main() -> None:
    """Run the notebook of the command line."""
    path, page = map(Path, sys.argv[1:])
    print(f"Running {path} on the bundled model.")
    try:
        notebook = run(path)
    except CellExecutionError as error:
        sys.exit(f"\nThe demo stopped at a cell that failed: {error.ename}: {error.evalue}")
    write_page(notebook, page)
    print(f"\n{'─' * WIDTH}\nThe executed notebook is {page}: open it in a browser.")
    print("`make lab` opens the notebook itself, where you can ask, stream and cancel.")


if __name__ == "__main__":
    main()
