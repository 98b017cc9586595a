"""The panel's models, by mouse: load, see the memory, unload, and what goes wrong."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from .conftest import OpenPanel
from .panel_page import LOADING, REAL, expect_labels

pytestmark = [pytest.mark.browser, pytest.mark.model]


def test_bundled_model_can_be_loaded_and_unloaded_by_its_button(open_panel: OpenPanel) -> None:
    panel = open_panel(REAL, "%vision list")
    expect(panel.row("demo")).to_contain_text("bundled")
    expect(panel.memory).to_have_accessible_name(re.compile("No model is loaded"))
    expect_labels(panel)
    panel.screenshot("opened")

    panel.row("demo").get_by_role("button", name="Load", exact=True).click()
    unload = panel.row("demo").get_by_role("button", name="Unload", exact=True)
    expect(unload).to_be_enabled(timeout=LOADING)
    expect(panel.row("demo")).to_contain_text("loaded")
    expect(panel.row("demo")).to_contain_text("vision · smolvlm · 13 MB")
    expect(panel.memory).to_have_accessible_name(re.compile(r"MB of .* in use"))
    expect(panel.root.get_by_text("Loaded demo: vision, 13 MB.")).to_be_visible()
    expect(panel.status).to_have_text("demo loaded · idle")
    panel.screenshot("loaded")
    # A cell sees the same.
    panel.notebook.run(2)
    expect(panel.notebook.output(2)).to_contain_text(re.compile(r"demo.*loaded", re.DOTALL))

    unload.click()
    expect(panel.root.get_by_text(re.compile("^Unloaded demo: .* freed"))).to_be_visible()
    expect(panel.memory).to_have_accessible_name(re.compile("No model is loaded"))
    expect(panel.row("demo").get_by_role("button", name="Load", exact=True)).to_be_enabled()

    # A folder that is none is one line, and what was typed stays.
    name = panel.root.get_by_role("combobox", name="Another model")
    load = panel.root.get_by_title("Load this model")
    expect(panel.root.get_by_title("Enter a model first")).to_be_disabled()
    name.fill("./nowhere")
    expect(load).to_be_enabled()
    load.click()
    expect(panel.root.get_by_role("alert").filter(has_text="There is no folder")).to_be_visible()
    expect(name).to_have_value("./nowhere")
    panel.screenshot("no-such-model")
    assert panel.notebook.foreign_requests == []
