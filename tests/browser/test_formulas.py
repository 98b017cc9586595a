"""Formulas are typeset in a cell, in the panel and in an opened notebook; prices are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from mlx_magic.notebook.display import formulas
from mlx_magic.notebook.display.sanitize import to_html
from tests.hostile.answers import ANSWERS, HONEST

from .conftest import OpenNotebook, OpenPanel
from .lab import LabServer
from .panel_page import scripted
from .test_answers import LOOK, SET_WRONG

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

ANSWER = r"""It costs $5 and $10, or $.50/$.75, not $20 for $x_1*y_1*z_1$.

\[ a_1 * b_1 \\ c_2 * d_2 \]

So \(p * q * r\) and **this** *is* $\frac{1}{2}$.

$$
A = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
$$

"""
FORMULAS = 5
ASK = "%%vision img\nWhat?"
MARKDOWN = """
from IPython.display import display
from mlx_magic.notebook.display.render import bundle
display({"text/markdown": bundle(_)["text/markdown"]}, raw=True)
"""


def expect_typeset(area: Locator, count: int = FORMULAS) -> None:
    """Expect formulas without errors, and prices in words."""
    expect(area.locator("mjx-container")).to_have_count(count, timeout=60_000)
    expect(area.locator("mjx-merror, [data-mjx-error]")).to_have_count(0)
    assert area.locator("mjx-container mjx-mo, mjx-container mo").count() >= 6
    expect(area).to_contain_text("It costs $5 and $10, or $.50/$.75, not $20 for")
    expect(area).not_to_contain_text("\\frac")


def test_formulas_are_typeset_in_cell_panel_and_opened_notebook(
    open_panel: OpenPanel, open_notebook: OpenNotebook, server: LabServer, models: Path
) -> None:
    panel = open_panel(scripted(models, answer=ANSWER), ASK, MARKDOWN, own_page=True)
    notebook = panel.notebook
    panel.ask("What?")
    panel.expect_ended(1, "smol")
    expect_typeset(panel.text(1, "smol"))
    panel.screenshot("formulas")
    notebook.run(2)
    expect_typeset(notebook.cell(2).locator(".jp-OutputArea-output"))
    notebook.run(3)
    expect_typeset(notebook.cell(3).locator(".jp-OutputArea-output"))
    notebook.screenshot("formulas-cells")

    saved = notebook.saved()
    other = server.notebooks / "formulas-of-somebody-else.ipynb"
    server.write(other, saved)
    again = open_notebook(path=other)
    for cell in (2, 3):
        expect_typeset(again.cell(cell).locator(".jp-OutputArea-output"))
    assert notebook.foreign_requests == again.foreign_requests == []


def test_hostile_formulas_in_the_panel_are_harmless(open_panel: OpenPanel, models: Path) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in ANSWERS.values()]
    texts = [text for text in texts if len(text) < 1_000]
    parts = ["\n\n".join([*texts[at::2], HONEST["inline"], ""]) for at in range(2)]
    cells = [f"script.pieces = [{part!r}]" for part in parts]
    panel = open_panel(scripted(models), *cells, own_page=True)
    notebook = panel.notebook
    for number, part in enumerate(parts, start=1):
        notebook.run(number + 1)
        panel.ask(f"Be evil {number}.")
        panel.expect_ended(number, "smol")
        area = panel.text(number, "smol")
        count = to_html(part).count(f'<span class="{formulas.SET}"')
        assert count
        expect(area.locator("mjx-container")).to_have_count(count, timeout=60_000)
        expect(area.locator("mjx-merror, [data-mjx-error]")).to_have_count(0)
        assert area.evaluate_all(SET_WRONG) == []
        assert area.evaluate_all(LOOK) == []
    panel.screenshot("formulas-hostile")
    assert notebook.foreign_requests == []
    assert notebook.server_requests("shutdown") == []
    assert notebook.page.evaluate("window.pwned") is None
