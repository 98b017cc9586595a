"""Choices in a cell: the flag, the setting, what is shown, and errors in one line."""

from __future__ import annotations

import enum
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets import TraitError

from mlx_magic.engine.request import Choices
from mlx_magic.engine.result import VisionResult
from mlx_magic.notebook.display import render
from mlx_magic.notebook.magic_line.options import parse_cell
from mlx_magic.notebook.panel.state.cell_text import cell_text
from mlx_magic.notebook.panel.state.conversation import Answer, Turn
from mlx_magic.notebook.panel.state.export import to_json, to_markdown
from mlx_magic.options import Settings
from mlx_magic.testing import ScriptedBackend


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def cell(shell: InteractiveShell, line: str) -> Any:
    shell.run_cell_magic("vision", f"{line} -o r", "Which?")
    return shell.user_ns["r"]


def chosen(probabilities: dict[Any, float], choice: Any, **more: Any) -> VisionResult:
    text = ", ".join(choice) if isinstance(choice, tuple) else str(getattr(choice, "value", choice))
    return VisionResult(
        text, "demo", "stop", choice=choice, probabilities=probabilities, confidence=0.5, **more
    )


@pytest.mark.parametrize(
    "line", ["--choices ['red','blue']", "--choices \"['red', 'blue']\"", "--choices=names"]
)
def test_choices_are_an_expression(
    line: str, shell: InteractiveShell, script: ScriptedBackend
) -> None:
    shell.user_ns["names"] = ("red", "blue")
    result = cell(shell, line)
    assert result.choice == "red"
    assert result.probabilities == {"red": 0.75, "blue": 0.25}


def test_choices_of_an_enum_give_its_member(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    shell.user_ns["Color"] = Color
    assert cell(shell, "--choices Color").choice is Color.RED
    assert cell(shell, "--choices Color --multiple").choice == (Color.RED,)


def test_setting_holds_for_every_cell(shell: InteractiveShell, script: ScriptedBackend) -> None:
    shell.user_ns["Color"] = Color
    shell.run_line_magic("config", "VisionMagics.choices = Color")
    assert cell(shell, "").choice is Color.RED
    assert cell(shell, "--choices ['x','y']").choice == "x"
    magics = shell.magics_manager.registry["VisionMagics"]
    with pytest.raises(TraitError, match="only one answer"):
        magics.choices = ["x"]
    magics.choices = None
    assert cell(shell, "").choice is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--choices colour", "name 'colour' is not defined"),
        ("--choices red|blue", "name 'red' is not defined"),
        ("--choices 1/0", "ZeroDivisionError"),
        ("--choices '['", "is not a Python expression"),
        ("--choices ['x']", "only one answer"),
        ("--choices ['x','x']", "'x' twice"),
        ("--choices", "--choices needs a value"),
        ("--multiple", "multiple needs choices"),
        ("--multiple=yes", "takes no value"),
        ("--choices ['x','y'] -f json", "exclude each other"),
        ("--choices ['x','y'] --think", "exclude each other"),
    ],
)
def test_mistakes_are_one_line_before_a_load(
    line: str, message: str, shell: InteractiveShell, script: ScriptedBackend
) -> None:
    with pytest.raises(UsageError) as caught:
        shell.run_cell_magic("vision", line, "Which?")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert script.loads == 0


def test_terminal_shows_the_choice_and_the_probabilities(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    cell(shell, "--choices ['red','blue']")
    out = capsys.readouterr().out
    assert out.startswith("red\n")
    assert out.endswith(" 75.0 %  red\n 25.0 %  blue\n")


def test_result_shows_bars_the_highest_first() -> None:
    shown = render.bundle(chosen({"cat": 0.25, "dog": 0.75}, "dog"))
    assert shown["text/plain"] == "dog\n 75.0 %  dog\n 25.0 %  cat"
    html = shown["text/html"]
    assert html.index("75.0 %") < html.index("25.0 %")
    assert re.findall(r"width:([\d.]+%)", html) == ["75.0%", "25.0%"]
    assert "<strong>dog</strong>" in html
    assert shown["text/markdown"].splitlines()[-2:] == ["- 75.0 % dog", "- 25.0 % cat"]


def test_members_are_shown_by_their_value() -> None:
    shown = render.bundle(chosen({Color.RED: 0.4, Color.BLUE: 0.6}, Color.BLUE))
    assert shown["text/plain"] == "blue\n 60.0 %  blue\n 40.0 %  red"


def test_many_choices_are_summed_up() -> None:
    many = {f"n{n}": (13 - n) / 100 for n in range(13)}
    plain = render.bundle(chosen(many, "n0"))["text/plain"]
    assert plain.splitlines()[-1].strip() == "3 others, each 3.0 % or less"
    assert len(plain.splitlines()) == 12


def test_no_label_that_holds_is_said() -> None:
    shown = render.bundle(chosen({"cat": 0.1, "dog": 0.2}, ()))
    assert shown["text/plain"].startswith("none of them\n")
    assert "*none of them*" in shown["text/markdown"]


def test_raw_format_shows_the_choice_alone() -> None:
    assert render.bundle(chosen({"a": 0.6, "b": 0.4}, "a", format="raw")) == {"text/plain": "a"}


class Tags(HTMLParser):
    """The names of all elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(name for name, _ in attrs)}


@given(st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True))
def test_labels_are_never_markup(labels: list[str]) -> None:
    hostile = [*labels, "<img src=x onerror=alert(1)>", "</td></table><script>x</script>"]
    shown = render.bundle(chosen(dict.fromkeys(hostile, 0.1), hostile[-1]))
    tags = Tags()
    tags.feed(shown["text/html"])
    assert tags.seen <= {
        *("div", "class", "style", "pre", "table", "aria-label", "tbody", "tr", "td"),
        *("span", "strong"),
    }
    assert "<img" not in shown["text/markdown"]
    assert "<script" not in shown["text/markdown"]


def test_panel_copies_and_exports_choices() -> None:
    settings = Settings(choices=Choices(("red", "it's")), multiple=True)
    result = chosen({"red": 0.7, "it's": 0.3}, ("red",))
    turn = Turn("t1", "Which?", settings=settings, answers=[Answer("demo", result=result)])
    text = cell_text(turn, "demo", [])
    assert text.startswith("%%vision -m demo --choices ")
    assert text.splitlines()[0].endswith(" --multiple")
    parsed = parse_cell(text.splitlines()[0].removeprefix("%%vision"), "Which?").settings
    assert eval(parsed.choices.text) == ["red", "it's"]
    exported = to_json([turn])
    assert '"choices": [' in exported
    assert "- 70.0 % red" in to_markdown([turn])
