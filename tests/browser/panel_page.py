"""A panel as a user or a screen reader finds its controls: by roles and names."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from .lab import ROOT, LabNotebook

IMAGES = ROOT / "notebooks" / "pictures"
REAL = "%load_ext mlx_magic"
"""A first cell: the extension, and with it the bundled model."""

# What can be operated; the last one is what ipywidgets makes of a slider.
CONTROLS = "button, input:not([hidden]), textarea, select, [role=slider]"
LOADING = 60_000
"""Milliseconds in which the bundled model loads and answers, even on a busy machine."""

_DROP = """(node, [name, data]) => {
  const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
  const init = { dataTransfer, bubbles: true, cancelable: true };
  for (const type of ["dragenter", "dragover", "drop"])
    node.dispatchEvent(new DragEvent(type, init));
}"""
_TO_CLIPBOARD = """async (data) => {
  const png = await (await fetch(`data:image/png;base64,${data}`)).blob();
  await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
}"""


def scripted(model: Path, answer: str = "Two **red** squares.\n\n", hold: str | None = None) -> str:
    """Return a first cell: a backend that follows a script, and an image `img`.

    A second model is at hand as `other`.
    """
    return f"""
%load_ext mlx_magic
%config VisionMagics.max_tokens = 1_000_000
from PIL import Image
from mlx_magic.testing import use_scripted
img = Image.new("RGB", (40, 20), "red")
script = use_scripted({answer!r}, hold=None)
%vision load {model} --as smol
%vision load {model.with_name("other")} --as other
%vision use smol
script.hold = {hold!r}
"""


class PanelPage:
    """A panel that a cell shows.

    Parameters
    ----------
    notebook : LabNotebook
    cell : int
        Place of the cell, from 0.
    """

    def __init__(self, notebook: LabNotebook, cell: int = 1) -> None:
        self.notebook = notebook
        self.page: Page = notebook.page
        self.root = notebook.output(cell).locator(".mlxm-panel")
        self.tray = self.root.get_by_role("group", name="Images", exact=True)
        self.conversation = self.root.get_by_role("group", name="Conversation", exact=True)
        self.prompt = self.root.get_by_role("textbox", name="Prompt", exact=True)
        self.model = self.root.get_by_role("combobox", name="Model", exact=True)
        self.variable = self.root.get_by_role("combobox", name="From the notebook")
        self.thumbnails = self.tray.get_by_role("list", name="Images to ask about")
        self.status = self.root.get_by_role("status").first
        self.memory = self.root.get_by_role("img", name=re.compile("^Memory"))

    @property
    def cancel(self) -> Locator:
        """The button that cancels everything."""
        return self.button("Cancel")

    def button(self, name: str) -> Locator:
        """Return a button of the panel by its name."""
        return self.root.get_by_role("button", name=name, exact=True)

    def row(self, model: str) -> Locator:
        """Return what the list of models says of one."""
        title = self.page.locator(".mlxm-model-title", has_text=re.compile(f"^{model}$"))
        return self.root.locator(".mlxm-model").filter(has=title)

    def turn(self, number: int) -> Locator:
        """Return a question with its answers, from 1."""
        return self.conversation.get_by_role("article", name=f"Question {number}", exact=True)

    def answer(self, number: int, model: str = "demo") -> Locator:
        """Return a model's answer to a question."""
        return self.turn(number).get_by_role("region", name=f"Answer of {model}", exact=True)

    def text(self, number: int, model: str = "demo") -> Locator:
        """Return the text of an answer, as far as it has come."""
        return self.answer(number, model).locator(".mlxv-text")

    def select(self, menu: str, model: str) -> None:
        """Choose a model in one of the menus."""
        found = self.root.get_by_role("combobox", name=menu, exact=True)
        wanted = re.compile(rf"^{model}\s")
        expect(found.locator("option", has_text=wanted)).to_have_count(1)
        labels = found.locator("option").all_text_contents()
        found.select_option(index=[bool(wanted.search(label)) for label in labels].index(True))

    def write(self, prompt: str) -> None:
        """Write a prompt; Run is there to be pressed then."""
        self.prompt.fill(prompt)
        expect(self.button("Run")).to_be_enabled()

    def ask(self, prompt: str) -> None:
        """Write a prompt and press Run."""
        self.write(prompt)
        self.button("Run").click()

    def expect_ended(self, number: int, model: str = "demo") -> None:
        """Expect that an answer has ended: it can be copied."""
        copy = self.answer(number, model).get_by_role("button", name="Copy", exact=True)
        expect(copy).to_be_visible(timeout=LOADING)

    def expect_images(self, *names: str) -> None:
        """Expect these images, in order."""
        expect(self.thumbnails.locator(".mlxv-name")).to_have_text(list(names))

    def choose(self, *names: str) -> None:
        """Choose files, as the file dialog of the system does."""
        with self.page.expect_file_chooser() as chooser:
            self.button("Choose files…").click()
        chooser.value.set_files([IMAGES / name for name in names])

    def drop(self, name: str) -> None:
        """Drop a file on the panel."""
        self.conversation.evaluate(_DROP, [name, _encoded(name)])

    def paste(self, name: str) -> None:
        """Paste an image copied by another program."""
        self.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page.evaluate(_TO_CLIPBOARD, _encoded(name))
        self.prompt.click()
        self.page.keyboard.press("Control+v")

    def clipboard(self) -> str:
        """Return the text that was copied."""
        self.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        return str(self.page.evaluate("navigator.clipboard.readText()"))

    def expect_growing(self, number: int, model: str = "demo") -> None:
        """Expect that an answer's text grows, and that nothing else moves afterwards."""
        text = self.text(number, model)
        before = len(text.text_content() or "")
        # Looked for anew each time: a turn may be drawn again, above all after a reload.
        expect(text).to_have_text(re.compile(rf"^[\s\S]{{{before + 1},}}$"))
        # It pushes down what is below, until it scrolls. A button that moves between the press
        # and the release of the mouse is not clicked.
        script = "log => !log.isConnected || log.scrollHeight > log.clientHeight"
        log = self.conversation.locator(".mlxv-log").element_handle()
        self.page.wait_for_function(script, arg=log)

    def screenshot(self, name: str) -> None:
        """Keep what the panel looks like now; the page is made high enough for all of it."""
        self.notebook.screenshot(f"panel-{name}")


def expect_labels(panel: PanelPage) -> None:
    """Expect that every control in sight has a name, and every disabled button says why."""
    controls = panel.root.locator(CONTROLS).filter(visible=True)
    for control in controls.all():
        expect(control).to_have_accessible_name(re.compile(r"\S"))
    for button in panel.root.locator("button:disabled").filter(visible=True).all():
        expect(button).to_have_attribute("title", re.compile(r"\w+ \w+"))
    expect(panel.root.locator("[title=null]").filter(visible=True)).to_have_count(0)


def _encoded(name: str) -> str:
    return base64.b64encode((IMAGES / name).read_bytes()).decode("ascii")
