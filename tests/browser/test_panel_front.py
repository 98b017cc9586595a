"""The panel's two widgets in JupyterLab and in Notebook 7.

The cells build them with data of their own; what Python hears of the page stands in a label.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Locator, Page, WebSocketRoute, expect

from .conftest import OpenNotebook
from .lab import FRONT_ENDS, ROOT, FrontEnd, LabNotebook

pytestmark = pytest.mark.browser

SCREENSHOTS = ROOT / "build" / "screenshots"
BOTH = pytest.mark.parametrize("front_end", FRONT_ENDS)
HOSTILE = "<img src=x onerror=\"window.pwned='name'\"><script>window.pwned='script'</script>"
WORDS = "seven words that a model might write "

SETUP = """
import base64, hashlib, io, json
import ipywidgets as w
from PIL import Image, ImageDraw
from mlx_magic.notebook.panel.widgets.front import ConversationView, ImageTray
from mlx_magic.notebook.display.sanitize import to_html

calls = []
label = w.Label("[]")
label.add_class("heard")

class Heard:
    def __getattr__(self, name):
        def hear(**values):
            if "data" in values:
                values["data"] = hashlib.sha256(values["data"]).hexdigest()
            calls.append([name, values])
            label.value = json.dumps(calls)
        return hear

def thumb(color, size=(128, 96)):
    image = Image.new("RGB", size, color)
    ImageDraw.Draw(image).ellipse((16, 16, 72, 72), fill="white")
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

def image_data(id, name, color, size=(640, 480)):
    small = (128, 128 * size[1] // size[0])
    return dict(id=id, name=name, width=size[0], height=size[1], note="", thumb=thumb(color, small))

def answer(model, state="done", **given):
    empty = dict(status="", fraction=-1.0, blocks=[], tail="", text="", cell="", footer="")
    return {"model": model, "state": state, **empty, "error": "", "saved": "", **given}

def turn(id, number, prompt, *answers, images=(), system="", follows=True):
    return dict(id=id, number=number, prompt=prompt, system=system, images=list(images),
                answers=list(answers), follows=follows)

turns = []
tray = ImageTray(Heard())
prompt = w.Textarea(placeholder="Ask about the images")
prompt.layout.width = "auto"
prompt.add_class("mlxm-prompt")
"""
SHOW = """
talk = ConversationView(Heard(), lambda: turns)
box = w.VBox([tray, prompt, talk])
box.add_class("mlxm-panel")
display(box, label)
"""
THREE = """
second = image_data("b", "second.png", "orange", (300, 500))
tray.images = [image_data("a", "first.png", "teal"), second, image_data("c", "third.png", "purple")]
"""


class FrontPage:
    """A notebook whose first cell shows the widgets."""

    def __init__(self, notebook: LabNotebook) -> None:
        self.notebook = notebook
        self.page: Page = notebook.page
        self.panel = self.page.locator(".mlxm-panel").first
        self.tray = self.page.locator(".mlxm-tray").first
        self.talk = self.page.locator(".mlxm-conversation").first
        self.prompt = self.panel.locator(".mlxm-prompt textarea")
        self.images = self.tray.locator(".mlxv-image")
        self.answer = self.talk.locator(".mlxv-answer").first

    def button(self, name: str | re.Pattern[str]) -> Locator:
        """Return a button of the panel by its name."""
        return self.panel.get_by_role("button", name=name, exact=isinstance(name, str))

    def expect_heard(self, what: str, **values: Any) -> None:
        """Expect that Python received a message."""
        expect(self.page.locator(".heard").first).to_contain_text(json.dumps([what, values]))

    def heard(self) -> list[list[Any]]:
        """Return all messages that Python received, as far as the page knows."""
        calls: list[list[Any]] = json.loads(self.page.locator(".heard").first.inner_text())
        return calls

    def names(self, *names: str) -> None:
        """Expect these thumbnails, in order."""
        expect(self.images.locator(".mlxv-name")).to_have_text(list(names))

    def screenshot(self, name: str) -> None:
        """Keep what the panel looks like now."""
        self.panel.screenshot(path=SCREENSHOTS / f"front-{name}.png")

    def files(self, *files: tuple[str, bytes]) -> None:
        """Choose files."""
        payloads = [FilePayload(name=n, mimeType="image/png", buffer=data) for n, data in files]
        self.tray.locator("input[type=file]").set_input_files(payloads)


Show = Callable[..., FrontPage]


@pytest.fixture
def show(open_notebook: OpenNotebook) -> Show:
    """Open a notebook, show the widgets in its first cell, and run no other."""

    def show_panel(
        *cells: str,
        more: str = "",
        front_end: FrontEnd = "lab",
        init: str = "",
        own_page: bool = False,
    ) -> FrontPage:
        own_page = own_page or bool(init)
        code = SETUP + more + SHOW
        notebook = open_notebook(code, *cells, front_end=front_end, own_page=own_page)
        if init:
            notebook.page.evaluate(init)
        notebook.run(0)
        front = FrontPage(notebook)
        expect(front.tray).to_be_visible()
        expect(front.talk).to_be_visible()
        return front

    return show_panel


def drop(target: Locator, kind: str = "drop", name: str = "dropped.png") -> None:
    """Drop a small file on an element, as the file browser of the desktop would."""
    target.evaluate(
        """(node, [kind, name]) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File(["content"], name, { type: "image/png" }));
          const init = { dataTransfer, bubbles: true, cancelable: true };
          for (const type of ["dragenter", "dragover", kind])
            node.dispatchEvent(new DragEvent(type, init));
        }""",
        [kind, name],
    )


# ---- the tray


@BOTH
def test_file_is_uploaded_in_chunks_with_progress(show: Show, front_end: FrontEnd) -> None:
    front = show(
        'tray.images = [image_data(calls[0][1]["id"], "big.png", "teal")]', front_end=front_end
    )
    expect(front.tray).to_contain_text("Drop, paste or choose images")
    data = bytes(range(256)) * 5_000
    front.files(("big.png", data))
    pieces = [data[at : at + 512 * 1024] for at in range(0, len(data), 512 * 1024)]
    assert len(pieces) == 3
    expect(front.page.locator(".heard").first).to_contain_text('"piece": 2')
    calls = front.heard()
    assert [name for name, _ in calls] == ["file"] * 3
    assert len({values.pop("id") for _, values in calls}) == 1
    for number, (_, values) in enumerate(calls):
        digest = hashlib.sha256(pieces[number]).hexdigest()
        given = {"name": "big.png", "size": len(data), "piece": number, "pieces": 3}
        assert values == {**given, "data": digest}
    expect(front.tray.get_by_role("progressbar", name="Receiving big.png")).to_be_visible()
    front.notebook.run(1)
    front.names("big.png")
    expect(front.tray.get_by_role("progressbar")).to_have_count(0)
    expect(front.tray.get_by_role("status")).to_have_text("big.png added. 1 in all.")


def test_file_over_the_limit_is_refused_in_the_page(show: Show) -> None:
    front = show(more=THREE + "tray.max_bytes = 1_000\ntray.max_images = 4\n")
    front.files(("huge.png", b"x" * 2_000_000), ("fits.png", b"x"), ("late.png", b"x"))
    problems = front.tray.get_by_role("alert").locator("li span")
    expect(problems).to_have_text(
        [
            "huge.png was not added: it has 2.0 MB, the limit for one image is 1 kB.",
            "late.png was not added: the limit is 4 images.",
        ]
    )
    expect(front.page.locator(".heard").first).to_contain_text("fits.png")
    assert {values["name"] for _, values in front.heard()} == {"fits.png"}
    for _ in range(2):
        front.button(re.compile("^Dismiss")).first.click()
    expect(problems).to_have_count(0)


def test_problems_and_a_disabled_tray_come_from_python(show: Show) -> None:
    why = "smol is a text model and cannot see images"
    front = show(
        more=f"tray.problems = [dict(id='p', text={HOSTILE!r})]\ntray.why_not = {why!r}\n"
        "tray.opening = [dict(id='o', name='half.heic', fraction=0.5)]\n"
    )
    expect(front.button("Choose files…")).to_be_disabled()
    expect(front.button("Camera")).to_be_disabled()
    expect(front.button("Choose files…")).to_have_attribute("title", why)
    expect(front.tray).to_contain_text("Smol is a text model and cannot see images")
    bar = front.tray.get_by_role("progressbar", name="Receiving half.heic")
    expect(bar).to_have_attribute("aria-valuenow", "50")
    drop(front.tray)
    expect(front.tray.get_by_role("alert").locator("li")).to_have_count(2)
    assert front.heard() == []
    front.button("Stop receiving half.heic").click()
    front.expect_heard("remove", id="o")
    front.button(f"Dismiss: {HOSTILE}").click()
    front.expect_heard("dismiss", id="p")
    assert front.page.evaluate("window.pwned") is None


@BOTH
def test_files_can_be_dropped_anywhere_in_the_panel(show: Show, front_end: FrontEnd) -> None:
    front = show(front_end=front_end)
    drop(front.prompt, kind="dragover")
    expect(front.panel).to_have_class(re.compile("mlxm-dropping"))
    front.screenshot(f"{front_end}-dropping")
    drop(front.prompt)
    expect(front.panel).not_to_have_class(re.compile("mlxm-dropping"))
    expect(front.page.locator(".heard").first).to_contain_text('"dropped.png"')
    expect(front.prompt).to_have_value("")


@BOTH
def test_pasted_image_is_added_and_pasted_text_stays_text(show: Show, front_end: FrontEnd) -> None:
    front = show(front_end=front_end)
    front.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    front.page.evaluate("navigator.clipboard.writeText('only words')")
    front.prompt.click()
    front.page.keyboard.press("Control+v")
    expect(front.prompt).to_have_value("only words")
    assert front.heard() == []
    front.page.evaluate(
        """async () => {
          const canvas = new OffscreenCanvas(4, 4);
          canvas.getContext("2d").fillRect(0, 0, 4, 4);
          const png = await canvas.convertToBlob();
          await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
        }"""
    )
    front.page.keyboard.press("Control+v")
    expect(front.page.locator(".heard").first).to_contain_text('"pasted.png"')
    front.button("Choose files…").focus()
    front.page.keyboard.press("Control+v")
    front.page.wait_for_function(
        "document.querySelector('.heard').innerText.split('pasted.png').length === 3"
    )
    expect(front.prompt).to_have_value("only words")
    expect(front.notebook.page.locator(".jp-Notebook .jp-CodeCell")).to_have_count(1)


@BOTH
def test_keys_in_the_panel_do_not_reach_the_notebook(show: Show, front_end: FrontEnd) -> None:
    front = show(more=THREE, front_end=front_end)
    front.prompt.click()
    front.page.keyboard.type("add a b dd\n00")
    front.page.keyboard.press("Shift+Enter")
    front.page.keyboard.press("Control+Enter")
    front.expect_heard("run", prompt="add a b dd\n00\n")
    front.page.keyboard.press("Escape")
    front.expect_heard("cancel")
    front.images.first.focus()
    for key in ("a", "b", "d", "d", "Enter", "m", "Shift+Enter", "Control+Enter", "ArrowDown"):
        front.page.keyboard.press(key)
    expect(front.images.first).to_be_focused()
    expect(front.page.locator(".jp-Notebook .jp-Cell")).to_have_count(1)
    expect(front.notebook.cell(0).locator(".jp-InputPrompt")).to_have_text("[1]:")
    assert len(front.heard()) == 2
    # The notebook's own keys still work from here.
    assert front.notebook.saved().cells


def test_thumbnails_can_be_moved_by_keys_and_keep_the_focus(show: Show) -> None:
    front = show(more=THREE)
    first = front.images.nth(0)
    expect(first).to_have_attribute("aria-label", "1 of 3: first.png, 640 × 480")  # noqa: RUF001
    first.focus()
    front.page.keyboard.press("Alt+ArrowRight")
    front.names("second.png", "first.png", "third.png")
    expect(front.images.nth(1)).to_be_focused()
    front.expect_heard("order", ids=["b", "a", "c"])
    expect(front.tray.get_by_role("status")).to_have_text("first.png: now 2 of 3")
    front.button("Move third.png left").focus()
    front.page.keyboard.press("Enter")
    front.names("second.png", "third.png", "first.png")
    expect(front.button("Move third.png left")).to_be_focused()
    front.page.keyboard.press("Enter")
    front.names("third.png", "second.png", "first.png")
    expect(front.button("Move third.png left")).to_be_disabled()
    front.images.nth(1).focus()
    front.page.keyboard.press("Delete")
    front.expect_heard("remove", id="b")
    front.names("third.png", "first.png")
    expect(front.images.nth(1)).to_be_focused()
    expect(front.tray.get_by_role("status")).to_have_text("second.png removed. 2 in all.")
    front.button("Remove all").click()
    front.expect_heard("clear")
    front.names()
    expect(front.button("Choose files…")).to_be_focused()


@BOTH
def test_thumbnails_can_be_moved_by_dragging(show: Show, front_end: FrontEnd) -> None:
    front = show(more=THREE, front_end=front_end)
    front.images.nth(0).drag_to(front.images.nth(2), target_position={"x": 90, "y": 40})
    front.names("second.png", "third.png", "first.png")
    front.expect_heard("order", ids=["b", "c", "a"])
    front.images.nth(2).drag_to(front.images.nth(1), target_position={"x": 10, "y": 40})
    front.names("second.png", "first.png", "third.png")


CAMERA = """() => {
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");
  setInterval(() => {
    pen.fillStyle = pen.fillStyle === "#008080" ? "#ffa500" : "#008080";
    pen.fillRect(0, 0, 300, 150);
  }, 100);
  navigator.mediaDevices.getUserMedia = async () => (window.stream = canvas.captureStream(10));
}"""


def test_camera_takes_images_and_is_released(show: Show) -> None:
    front = show(init=CAMERA)
    front.button("Camera").click()
    front.page.wait_for_function("document.querySelector('.mlxv-camera video').videoWidth > 0")
    expect(front.button("Take picture")).to_be_focused()
    front.screenshot("camera")
    front.button("Take picture").click()
    expect(front.page.locator(".heard").first).to_contain_text('"camera.jpeg"')
    front.page.keyboard.press("Escape")
    expect(front.button("Take picture")).to_be_hidden()
    expect(front.button("Camera")).to_be_focused()
    assert front.page.evaluate("stream.getTracks().every((t) => t.readyState === 'ended')")
    front.page.keyboard.press("Escape")
    front.expect_heard("cancel")
    assert sum(name == "cancel" for name, _ in front.heard()) == 1


def test_button_says_why_there_is_no_camera(show: Show) -> None:
    hide = "() => Object.defineProperty(navigator, 'mediaDevices', { value: undefined })"
    front = show(init=hide)
    expect(front.button("Camera")).to_be_disabled()
    expect(front.tray).to_contain_text("No camera: browsers allow it only on localhost")


def test_refused_camera_permission_is_reported(show: Show) -> None:
    front = show(
        init="() => { navigator.mediaDevices.getUserMedia = async () => {"
        " throw new DOMException('no', 'NotAllowedError'); } }"
    )
    front.button("Camera").click()
    expect(front.tray).to_contain_text("The browser did not allow the camera.")


# ---- the conversation

ASKED = """
running = answer("smol", "running", status="reading the prompt", fraction=0.25)
talk.turn(turn("t1", 1, "What is\\nthis?", running,
               images=[dict(image_data("a", "cat.png", "teal"), seen="512 x 384")]))
"""
ENDED = """
text = "Two **red** squares."
whole = answer("smol", blocks=[to_html(text)], text=text, footer="12 tokens",
               cell="%%vision img -m smol\\nWhat is\\n    this?")
turns.append(turn("t1", 1, "What is this?", whole))
"""


def test_answer_streams_and_ends(show: Show) -> None:
    front = show(
        ASKED,
        'talk.delta("t1", 0, 0, "Two 🟥🟥 ")\ntalk.delta("t1", 0, 7, "<b>red</b>", "writing")',
        'talk.blocks("t1", 0, 0, [to_html("Two *red*")], "squ")\ntalk.delta("t1", 0, 3, "ares")',
        'talk.status("t1", 0, "writing · 9 tokens", -1)',
        'talk.answer("t1", 0, answer("smol", blocks=[to_html("Two *red* squares")], footer="f"))',
    )
    expect(front.talk).to_contain_text("Answers appear here.")
    expect(front.button("Export JSON")).to_be_disabled()
    expect(front.button("Export JSON")).to_have_attribute("title", "There is nothing to export yet")
    log = front.talk.get_by_role("log")
    front.notebook.run(1)
    expect(front.talk.locator(".mlxv-ask")).to_have_text("What is\nthis?", use_inner_text=True)
    expect(front.talk).to_contain_text("640 × 480 · seen at 512 × 384")  # noqa: RUF001
    bar = front.answer.get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuenow", "25")
    expect(log).to_have_attribute("aria-busy", "true")
    expect(front.button(re.compile("^Cancel"))).to_have_count(0)
    expect(front.button("Copy")).to_have_count(0)
    front.notebook.run(2)
    expect(front.answer.locator(".mlxv-text")).to_have_text("Two 🟥🟥 <b>red</b>")
    expect(front.answer).to_contain_text("writing")
    front.notebook.run(3)
    expect(front.answer.locator(".mlxv-block em")).to_have_text("red")
    expect(front.answer.locator(".mlxv-tail")).to_have_text("squares")
    front.notebook.run(4)
    expect(front.answer).to_contain_text("writing · 9 tokens")
    front.notebook.run(5)
    expect(front.answer.locator(".mlxv-text")).to_have_text("Two red squares")
    expect(bar).to_be_hidden()
    expect(log).to_have_attribute("aria-busy", "false")
    expect(front.talk.locator(".mlxv-spoken")).to_have_text("smol has answered")
    expect(front.button("Export JSON")).to_be_enabled()
    assert front.heard() == []


def test_thoughts_are_folded_above_the_answer(show: Show) -> None:
    front = show(
        ASKED,
        'talk.thoughts("t1", 0, 0, "So 🟥 it ")\ntalk.thoughts("t1", 0, 8, "is <b>red</b>.")',
        'talk.delta("t1", 0, 0, "Red.")',
        'talk.answer("t1", 0, answer("smol", blocks=["<p>Red.</p>"], text="Red.",'
        ' thoughts="So it is."))',
    )
    fold = front.answer.locator("details.mlxv-thoughts")
    front.notebook.run(1)
    expect(front.answer).to_be_visible()
    expect(fold).to_be_hidden()
    front.notebook.run(2)
    expect(fold.locator("summary")).to_have_text("Thinking")
    expect(fold.locator(".mlxv-thought")).to_be_hidden()
    fold.locator("summary").click()
    expect(fold.locator(".mlxv-thought")).to_have_text("So 🟥 it is <b>red</b>.")
    front.notebook.run(3)
    expect(front.answer.locator(".mlxv-text")).to_have_text("Red.")
    front.notebook.run(4)
    expect(fold.locator(".mlxv-thought")).to_have_text("So it is.")
    expect(front.answer.locator(".mlxv-text")).to_have_text("Red.")
    assert front.heard() == []


def test_page_requests_missed_state_once(show: Show) -> None:
    front = show(
        ASKED,
        'talk.delta("t1", 0, 99, "lost")\ntalk.delta("t1", 0, 103, "too")\n'
        'talk.status("gone", 0, "x", 0)',
        'talk.turn(turn("t1", 1, "What?", answer("smol", "running", tail="all of it")))\n'
        'talk.drop(["gone"])\ntalk.delta("t1", 0, 9, ", and more")\n'
        'talk.blocks("t1", 0, 5, ["<p>no</p>"], "")',
    )
    front.notebook.run(1)
    front.notebook.run(2)
    front.expect_heard("refresh", turn="gone")
    assert front.heard() == [["refresh", {"turn": "t1"}], ["refresh", {"turn": "gone"}]]
    front.notebook.run(3)
    expect(front.answer.locator(".mlxv-text")).to_have_text("all of it, and more")
    front.page.wait_for_function(
        "document.querySelector('.heard').innerText.split('refresh').length === 4"
    )


def test_several_answers_are_shown_side_by_side_and_cancelled_individually(show: Show) -> None:
    front = show(
        'talk.turn(turn("t1", 1, "Which?", answer("smol", "running", status="writing"),'
        ' answer("qwen", "running", status="loading", fraction=0.5),'
        ' answer("gone", "failed", error="gone needs 4 GB and 1 GB is left.")))',
    )
    front.notebook.run(1)
    answers = front.talk.locator(".mlxv-answer")
    expect(answers).to_have_count(3)
    boxes = [answers.nth(number).bounding_box() for number in range(3)]
    assert len({box["y"] for box in boxes if box}) == 1, "they do not stand side by side"
    front.button("Cancel qwen").click()
    front.expect_heard("cancel", turn="t1", index=1)
    expect(front.button("Cancel qwen")).to_be_disabled()
    expect(front.button("Cancel smol")).to_be_enabled()
    expect(answers.nth(2)).to_contain_text("gone needs 4 GB and 1 GB is left.")
    front.page.set_viewport_size({"width": 560, "height": 800})
    front.page.wait_for_function(
        """() => new Set([...document.querySelectorAll('.mlxv-answer')].map(
             (node) => node.getBoundingClientRect().y)).size === 3"""
    )
    front.screenshot("several-narrow")


def test_two_views_of_one_conversation_show_the_same(show: Show) -> None:
    front = show(
        "display(talk)\n" + ASKED,
        'talk.delta("t1", 0, 0, "once")\ntalk.delta("t1", 0, 4, " only")',
        "display(talk)",
    )
    front.notebook.run(1)
    front.notebook.run(2)
    front.notebook.run(3)
    texts = front.page.locator(".mlxm-conversation .mlxv-text")
    expect(texts).to_have_text(["once only"] * 3)
    assert front.heard() == []


@BOTH
def test_answers_can_be_copied_and_inserted_as_cells(show: Show, front_end: FrontEnd) -> None:
    front = show("'the next one'", more=ENDED, front_end=front_end)
    page = front.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    clipboard = "navigator.clipboard.readText()"
    front.button("Copy").click()
    expect(front.answer.get_by_role("status")).to_have_text("Copied")
    assert page.evaluate(clipboard) == "Two **red** squares."
    front.button("Copy as cell").click()
    front.expect_heard("cell_used", turn="t1", index=0)
    cell = "%%vision img -m smol\nWhat is\n    this?"
    assert page.evaluate(clipboard) == cell
    expect(front.button("Insert cell below")).to_be_enabled()
    # Another cell is the active one; a key does not change that.
    front.notebook.cell(1).locator(".cm-content").click()
    front.button("Insert cell below").focus()
    page.keyboard.press("Enter")
    expect(front.answer.get_by_role("status")).to_have_text("Inserted below")
    saved = front.notebook.saved()
    assert [found.source for found in saved.cells[1:]] == [cell, "'the next one'"]
    heard = page.locator(".heard").first
    expect(heard).to_have_text(re.compile("cell_used.*cell_used"))
    assert [name for name, _ in front.heard()] == ["cell_used"] * 2


def test_copying_works_without_the_clipboard_interface(show: Show) -> None:
    front = show(
        more=ENDED,
        init="() => Object.defineProperty(navigator, 'clipboard', { value: undefined })",
    )
    front.button("Copy").click()
    expect(front.answer.get_by_role("status")).to_have_text("Copied")
    front.prompt.click()
    front.page.keyboard.press("Control+v")
    expect(front.prompt).to_have_value("Two **red** squares.")
    expect(front.prompt).to_be_focused()


def test_insert_is_disabled_outside_a_cell_with_the_reason(show: Show) -> None:
    front = show(more=ENDED, own_page=True)
    page = front.page
    front.talk.evaluate("(node) => { node.id = 'out'; document.body.append(node) }")
    button = page.locator("#out").get_by_role("button", name="Insert cell below")
    expect(button).to_be_enabled()
    button.dispatch_event("click")
    expect(button).to_be_disabled()
    expect(button).to_have_attribute("title", re.compile("use Copy as cell$"))


def test_result_can_be_saved_under_a_name(show: Show) -> None:
    front = show(
        'talk.said("t1", 0, ok=False, text="answer is there already.", ask="replace")',
        'talk.answer("t1", 0, dict(whole, saved="answer"))\n'
        'talk.said("t1", 0, ok=True, text="Saved as answer.")',
        more=ENDED,
    )
    name = front.answer.get_by_label("Variable name")
    front.button("Save as variable").click()
    expect(name).to_be_focused()
    front.page.keyboard.press("Escape")
    expect(name).to_be_hidden()
    expect(front.button("Save as variable")).to_be_focused()
    front.page.keyboard.press("Enter")
    front.page.keyboard.press("Enter")
    expect(front.answer).to_contain_text("Enter a name for the variable")
    front.page.keyboard.type("answer")
    front.page.keyboard.press("Enter")
    front.expect_heard("save", turn="t1", index=0, name="answer", replace=False)
    front.notebook.run(1)
    expect(front.answer.get_by_role("status")).to_contain_text("answer is there already.")
    front.screenshot("save")
    front.button("Replace").click()
    front.expect_heard("save", turn="t1", index=0, name="answer", replace=True)
    front.notebook.run(2)
    expect(front.answer.get_by_role("status")).to_have_text("Saved as answer.")
    expect(front.button("Replace")).to_be_hidden()
    expect(name).to_be_hidden()
    assert [call for call, _ in front.heard()] == ["save", "save"]


def test_turn_can_be_edited_and_the_conversation_exported(show: Show) -> None:
    front = show('talk.download("talk.md", "text/markdown", "# Talk")', more=ENDED)
    front.button(re.compile("^Edit and ask again")).click()
    front.expect_heard("edit", turn="t1")
    expect(front.prompt).to_be_focused()
    front.button("Export Markdown").click()
    front.expect_heard("export", format="markdown")
    with front.page.expect_download() as download:
        front.notebook.run(1)
    assert download.value.suggested_filename == "talk.md"
    assert Path(download.value.path()).read_text() == "# Talk"


def test_page_scrolls_with_the_answer_only_from_the_end(show: Show) -> None:
    front = show(
        'talk.turn(turn("t1", 1, "Go on", answer("smol", "running", status="writing")))\n'
        'talk.delta("t1", 0, 0, "line\\n" * 100)',
        'talk.delta("t1", 0, 500, "more\\n" * 50)',
        'talk.delta("t1", 0, 750, "still more\\n" * 50)',
    )
    log = front.talk.get_by_role("log")
    distance = "node => node.scrollHeight - node.scrollTop - node.clientHeight"
    front.notebook.run(1)
    expect(front.answer).to_contain_text("line")
    assert log.evaluate("node => node.clientHeight <= 0.61 * innerHeight")
    assert log.evaluate(distance) < 2
    log.hover()
    front.page.mouse.wheel(0, -600)
    front.page.wait_for_function(
        "() => { const n = document.querySelector('.mlxv-log');"
        " return n.scrollHeight - n.scrollTop - n.clientHeight > 100 }"
    )
    before = log.evaluate("node => node.scrollTop")
    front.notebook.run(2)
    expect(front.answer).to_contain_text("more")
    assert log.evaluate("node => node.scrollTop") == before
    log.evaluate("node => node.scrollTo(0, node.scrollHeight)")
    front.notebook.run(3)
    expect(front.answer).to_contain_text("still more")
    assert log.evaluate(distance) < 2


def test_hostile_text_stays_text(show: Show) -> None:
    bad = HOSTILE
    front = show(
        more=f"bad = {bad!r}\n"
        "where = image_data('a', bad, 'teal')\n"
        "where.update(thumb='http://hostile.invalid/t.png', note=bad)\n"
        "tray.images = [where]\n"
        "tray.opening = [dict(id='o', name=bad, fraction=0)]\n"
        "turns.append(turn('t1', 1, bad, answer(bad, 'running', status=bad, tail=bad),"
        " answer(bad, error=bad, footer=bad, saved=bad, state='failed'),"
        " images=[dict(where, seen=bad)], system=bad))\n"
    )
    expect(front.talk.locator(".mlxv-ask")).to_have_text(bad)
    expect(front.talk.locator(".mlxv-model")).to_have_text([bad, bad])
    expect(front.talk.locator(".mlxv-tail").first).to_have_text(bad)
    expect(front.panel.locator("[onerror], script, [src^=http]")).to_have_count(0)
    assert front.page.evaluate("window.pwned") is None
    assert front.notebook.foreign_requests == []
    # The same as HTML does run: the check above can fail.
    front.page.evaluate("(bad) => { document.createElement('div').innerHTML = bad }", bad)
    front.page.wait_for_function("window.pwned !== undefined")


# ---- a page that goes and comes back, a kernel that does not


def reload(front: FrontPage) -> FrontPage:
    """Save the notebook and load the page again."""
    front.notebook.saved()
    front.page.reload()
    again = FrontPage(front.notebook)
    expect(again.talk).to_be_visible(timeout=30_000)
    return again


@BOTH
def test_reloaded_page_shows_the_conversation(show: Show, front_end: FrontEnd) -> None:
    grow = 'turns[:] = [turn("t1", 1, "What?", answer("smol", "running", tail="so far"))]\n'
    front = show(grow + "talk.turn(turns[0])", front_end=front_end, more=THREE)
    front.notebook.run(1)
    expect(front.answer).to_contain_text("so far")
    again = reload(front)
    expect(again.answer).to_contain_text("so far")
    again.names("first.png", "second.png", "third.png")
    again.prompt.click()
    again.page.keyboard.press("Escape")
    again.expect_heard("cancel")


LOST = "The kernel was restarted or the connection is lost."


@pytest.mark.parametrize(
    ("front_end", "way"), [("lab", "restart"), ("lab", "death"), ("notebook", "restart")]
)
def test_lost_kernel_is_shown_clearly(show: Show, front_end: FrontEnd, way: str) -> None:
    front = show("import os\nos._exit(1)", more=THREE + ENDED, front_end=front_end, own_page=True)
    page = front.page
    expect(page.get_by_text(LOST)).to_have_count(0)
    if way == "death":
        front.notebook.start(1)
    else:
        page.locator('[data-jp-item-name="restart"]').first.click()
        page.locator(".jp-Dialog .jp-mod-accept").click()
    banner = front.panel.get_by_role("alert").filter(has_text=LOST)
    expect(banner).to_have_count(1)
    expect(banner).to_be_visible()
    if way == "death":
        page.locator(".jp-Dialog .jp-mod-accept").click(timeout=30_000)
    front.screenshot(f"{front_end}-{way}")
    expect(front.talk).to_contain_text("Two red squares.")
    focusable = "node => { node.focus(); return document.activeElement === node }"
    for part in (front.prompt, front.images.first):
        assert not part.evaluate(focusable)
    drop(front.panel)
    expect(front.tray.locator(".mlxv-busy li")).to_have_count(0)
    kernel = page.locator(".jp-Notebook-ExecutionIndicator").first
    expect(kernel).to_have_attribute("data-status", "idle", timeout=30_000)
    expect(banner).to_be_visible()
    front.notebook.run(0)
    fresh = FrontPage(front.notebook)
    expect(fresh.talk).to_be_visible()
    expect(page.get_by_text(LOST)).to_have_count(0)


def test_restored_connection_restores_the_panel(show: Show) -> None:
    turn = "talk.turn(turn('t1', 1, 'What?', answer('smol', 'running', tail='so far')))"
    front = show(turn, own_page=True)
    sockets: list[WebSocketRoute] = []
    cut = False

    def connect(route: WebSocketRoute) -> None:
        if cut:
            route.close()
            return
        route.connect_to_server()
        sockets.append(route)

    front.page.route_web_socket(re.compile("/channels"), connect)
    again = reload(front)
    cut = True
    for socket in sockets:
        socket.close()
    banner = again.panel.get_by_role("alert").filter(has_text=LOST)
    expect(banner).to_be_visible()
    cut = False
    expect(banner).to_have_count(0, timeout=60_000)
    again.prompt.click()
    again.page.keyboard.press("Escape")
    again.expect_heard("cancel")


# ---- speed

WATCH = """() => {
  window.longest = 0;
  const look = (list) => {
    for (const { duration } of list.getEntries()) longest = Math.max(longest, duration);
  };
  (window.watch = new PerformanceObserver(look)).observe({ entryTypes: ["longtask"] });
}"""
BLOCK = "(time) => { for (const end = performance.now() + time; performance.now() < end; ); }"
BLOCKED = 100.0
"""Milliseconds that the page's main thread may be kept, at most."""


def assert_never_blocked(front: FrontPage, *cells: int) -> None:
    """Run cells; expect that no task took too long, and that a long one is detected.

    On a busy machine any task can take long: one that always does shows three times.
    """
    page = front.page
    page.evaluate(WATCH)
    for _ in range(3):
        page.evaluate("longest = 0")
        for cell in cells:
            front.notebook.run(cell)
        expect(front.button("Copy")).to_be_visible()
        if (longest := page.evaluate("longest")) < BLOCKED:
            break
    assert longest < BLOCKED
    page.evaluate(f"() => setTimeout({BLOCK}, 0, {BLOCKED})")
    page.wait_for_function("(time) => longest >= time", arg=BLOCKED)


def test_2000_tokens_never_block_the_page(show: Show) -> None:
    stream = f"""
import time
n = blocks = 0
words = {WORDS!r}
for step in range(1, 201):
    talk.delta("t1", 0, n, words, f"writing · {{10 * step}} tokens")
    n += len(words)
    if step % 20 == 0:
        talk.blocks("t1", 0, blocks, [to_html(words * 20)], "")
        n, blocks = 0, blocks + 1
    time.sleep(0.02)
talk.answer("t1", 0, answer("smol", blocks=[to_html(words * 200)], text=words * 200))
"""
    front = show(ASKED + stream)
    assert_never_blocked(front, 1)
    expect(front.answer.locator(".mlxv-text")).to_have_text((WORDS * 200).strip())
    assert front.heard() == []


def test_a_megabyte_without_a_space_never_blocks_the_page(show: Show) -> None:
    stream = """
from mlx_magic.notebook.display.sanitize import preformatted
talk.turn(turn("t2", 2, "Go", answer("smol", "running", status="writing")))
for step in range(10):
    talk.delta("t2", 0, step * 100_000, "x" * 100_000)
"""
    end = """
talk.answer("t2", 0, answer("smol", blocks=[preformatted("y" * 1_000_000)], text="y"))
"""
    front = show(stream, end)
    front.notebook.run(1)
    expect(front.page.locator(".mlxv-tail")).to_have_text("x" * 100_000)
    assert_never_blocked(front, 1, 2)
    expect(front.page.locator(".mlxv-block")).to_have_text("y" * 100_000)
    expect(front.page.locator(".mlxv-block .mlxv-segment")).to_have_count(13)


# ---- looks

LOOKS = (
    THREE
    + """
text = '''A street at night, seen from above.

- two **cars**, one with its lights on
- a shop with the sign `OPEN`

```python
cars = 2
```

| what | how many |
|---|---|
| cars | 2 |
| shops | 1 |
'''
usage = "53 prompt tokens (34 image), 120 written, 61.2 tokens/s, first token after 0.12 s"
asked = [dict(tray.images[0], seen="512 x 384"), dict(tray.images[1], seen="")]
turns += [
    turn("t1", 1, "What is in these pictures?\\nAnswer briefly.", images=asked,
         *[answer("smol", blocks=[to_html(text)], text=text, cell="%%vision", footer=usage)]),
    turn("t2", 2, "Which is larger?", answer("smol", blocks=["<p>The left one.</p>"], text="T",
         cell="%%vision", footer=usage, saved="larger"),
         answer("qwen2-vl-2b-instruct-4bit", "failed",
                error="qwen2-vl needs 4.1 GB and 1.2 GB are left: unload another model first."),
         system="You are terse.", follows=False),
    turn("t3", 3, "Compare both.", images=asked[:1],
         *[answer("smol", "running", status="writing · 20 tokens",
                  blocks=["<p>A whole paragraph that has ended.</p>"], tail="And one that"),
           answer("qwen2-vl-2b-instruct-4bit", "running", status="reading", fraction=0.4)]),
]
tray.opening = [dict(id="o", name="IMG_2041.heic", fraction=0.4)]
tray.problems = [dict(id="p", text="notes.txt is no image that can be read.")]
"""
)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_panel_front_screenshots(show: Show, theme: str) -> None:
    front = show(more=LOOKS)
    page = front.page
    if theme == "dark":
        page.locator(".lm-MenuBar-itemLabel", has_text="Settings").click()
        page.locator(".lm-Menu-itemLabel", has_text="Theme").first.hover()
        page.locator(".lm-Menu-itemLabel", has_text="JupyterLab Dark").first.click()
        expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    page.set_viewport_size({"width": 1000, "height": 1800})
    front.images.first.hover()
    front.screenshot(theme)
    page.set_viewport_size({"width": 520, "height": 2200})
    front.screenshot(f"{theme}-narrow")
    wide = "node => node.scrollWidth > node.clientWidth + 1"
    assert not front.panel.evaluate(wide), "the panel does not fit a narrow output"
    assert not front.talk.get_by_role("log").evaluate(wide)
