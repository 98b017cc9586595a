"""Asking by mouse with the bundled model: adding images, and copying and saving answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from .conftest import OpenPanel
from .panel_page import IMAGES, LOADING, REAL, PanelPage, expect_labels

pytestmark = [pytest.mark.browser, pytest.mark.model]

SHAPES = "red circle, a blue square and a yellow star on a white background"
BOTH = f'First: the word "violin" on a white background. Second: a {SHAPES}.'
SETUP = f"{REAL}\nfrom PIL import Image\nphoto = Image.open({str(IMAGES / 'number.png')!r})"


def test_images_are_added_and_answers_exported_in_every_way(open_panel: OpenPanel) -> None:
    panel = open_panel(SETUP, "print(kept.finish_reason, kept.text)", "'the next one'")
    give_images(panel)
    ask_about_two(panel)
    edit_and_ask_again(panel)
    save_as_variable(panel)
    export(panel)
    copy_and_insert(panel)
    assert panel.notebook.foreign_requests == []


def give_images(panel: PanelPage) -> None:
    """Choose, drop, paste, photograph and name images; then move and remove them."""
    panel.choose("shapes.png")
    panel.expect_images("shapes.png")
    panel.drop("two.png")
    panel.expect_images("shapes.png", "two.png")
    panel.paste("word.png")
    panel.expect_images("shapes.png", "two.png", "pasted.png")
    expect(panel.prompt).to_have_value("")
    panel.button("Camera").click()
    camera = panel.tray.get_by_label("Camera").and_(panel.page.locator("video"))
    panel.page.wait_for_function("(video) => video.videoWidth > 0", arg=camera.element_handle())
    panel.screenshot("camera")
    panel.button("Take picture").click()
    panel.expect_images("shapes.png", "two.png", "pasted.png", "camera.jpeg")
    panel.tray.get_by_role("button", name="Close").click()
    panel.variable.fill("photo")
    panel.button("Add").click()
    panel.expect_images("shapes.png", "two.png", "pasted.png", "camera.jpeg", "photo")
    expect(panel.variable).to_have_value("")
    expect_labels(panel)
    panel.screenshot("images")

    images = panel.thumbnails.get_by_role("listitem")
    # The first one goes behind the pasted one.
    images.nth(0).drag_to(images.nth(2), target_position={"x": 90, "y": 40})
    panel.expect_images("two.png", "pasted.png", "shapes.png", "camera.jpeg", "photo")
    for name in ("two.png", "camera.jpeg", "photo"):
        panel.button(f"Remove {name}").click()
    panel.expect_images("pasted.png", "shapes.png")
    # A file that is not an image is reported in the panel.
    panel.variable.fill("nothing_of_this_name")
    panel.page.keyboard.press("Enter")
    problem = panel.root.get_by_role("alert").filter(has_text="nothing_of_this_name")
    expect(problem).to_be_visible()
    panel.screenshot("no-such-image")


def ask_about_two(panel: PanelPage) -> None:
    panel.write("Describe both pictures.")
    panel.screenshot("before-asking")
    panel.page.keyboard.press("Control+Enter")
    panel.expect_ended(1)
    expect(panel.text(1)).to_have_text(BOTH)
    expect(panel.answer(1)).to_contain_text(
        re.compile(r"143 prompt tokens \(128 image\), \d+ written, .* tokens/s, first token after")
    )
    asked = panel.turn(1).get_by_role("list", name="Images of this question")
    expect(asked.get_by_role("listitem")).to_have_count(2)
    expect(asked).to_contain_text(re.compile("320 . 256 · seen at 128 . 128"))
    expect(panel.prompt).to_have_value("")
    panel.expect_images()
    # The cell did not run again: that would have made another panel.
    expect(panel.notebook.cell(1).locator(".jp-InputPrompt")).to_have_text("[2]:")
    panel.screenshot("answer")


def edit_and_ask_again(panel: PanelPage) -> None:
    panel.ask("How many shapes are in the second picture?")
    panel.expect_ended(2)
    expect(panel.text(2)).to_have_text("There are 3 shapes.")
    panel.button("Edit and ask again: question 1").click()
    expect(panel.prompt).to_have_value("Describe both pictures.")
    expect(panel.prompt).to_be_focused()
    panel.expect_images("pasted.png", "shapes.png")
    expect(panel.root.get_by_text("Editing turn 1")).to_be_visible()
    panel.screenshot("editing")
    panel.button("Remove pasted.png").click()
    panel.expect_images("shapes.png")
    panel.ask("What is in the picture?")
    expect(panel.text(1)).to_have_text(f"A {SHAPES}.", timeout=LOADING)
    expect(panel.turn(2)).to_have_count(0)


def save_as_variable(panel: PanelPage) -> None:
    answer = panel.answer(1)
    panel.button("Save as variable").click()
    answer.get_by_label("Variable name").fill("photo")
    panel.page.keyboard.press("Enter")
    expect(answer.get_by_role("button", name="Replace")).to_be_visible()
    panel.screenshot("save-replaces")
    answer.get_by_label("Variable name").fill("not a name")
    panel.page.keyboard.press("Enter")
    expect(answer.get_by_text("not a name")).to_be_visible()
    answer.get_by_label("Variable name").fill("kept")
    panel.page.keyboard.press("Enter")
    expect(answer.get_by_text("Saved: the variable kept holds the result.")).to_be_visible()
    panel.screenshot("saved")
    panel.notebook.run(2)
    expect(panel.notebook.output(2)).to_have_text(f"stop A {SHAPES}.")


def export(panel: PanelPage) -> None:
    with panel.page.expect_download() as markdown:
        panel.button("Export Markdown").click()
    written = Path(markdown.value.path()).read_text(encoding="utf-8")
    assert markdown.value.suggested_filename.endswith(".md")
    assert SHAPES in written
    assert "data:image/" in written
    with panel.page.expect_download() as as_json:
        panel.button("Export JSON").click()
    (turn,) = json.loads(Path(as_json.value.path()).read_text(encoding="utf-8"))["turns"]
    assert turn["prompt"] == "What is in the picture?"


def copy_and_insert(panel: PanelPage) -> None:
    """Copy the answer, and the turn as a cell; insert that cell, and run it."""
    panel.button("Copy").click()
    expect(panel.answer(1).get_by_text("Copied")).to_be_visible()
    assert panel.clipboard() == f"A {SHAPES}."
    panel.button("Copy as cell").click()
    expect(panel.answer(1).get_by_text("The cell is copied")).to_be_visible()
    cell = panel.clipboard()
    assert cell.startswith("%%vision ")
    panel.button("Insert cell below").click()
    editor = panel.notebook.cell(2).locator(".cm-content")
    expect(editor).to_contain_text("%%vision")
    expect(editor).to_contain_text("What is in the picture?")
    panel.notebook.run(2)
    expect(panel.notebook.output(2)).to_contain_text(SHAPES)
    panel.screenshot("inserted")


def test_two_real_models_answer_concurrently(open_panel: OpenPanel, tmp_path: Path) -> None:
    copied = f"""
import shutil, mlx_magic
%load_ext mlx_magic
folder = shutil.copytree(mlx_magic.demo_model(), {str(tmp_path / "copy")!r})
mlx_magic.pool.load(folder, alias="copy").name
"""
    panel = open_panel(copied)
    panel.choose("two.png")
    panel.expect_images("two.png")
    panel.root.get_by_label("Compare models").check()
    panel.select("Model", "copy")
    panel.select("Second", "demo")
    panel.ask("What is in the picture?")
    for model in ("copy", "demo"):
        panel.expect_ended(1, model)
        expect(panel.text(1, model)).to_contain_text("A green triangle, a purple circle")
        expect(panel.row(model)).to_contain_text("loaded")
    left, right = (panel.answer(1, model).bounding_box() for model in ("copy", "demo"))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"], "the answers do not stand side by side"
    panel.screenshot("compared")
