"""Variable names for results: any Python identifier that IPython does not need."""

from __future__ import annotations

import builtins
import keyword
import os
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from mlx_magic.engine.result import VisionResult
from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.options import parse_cell
from mlx_magic.notebook.magic_line.variable_names import check_name
from mlx_magic.notebook.panel.control.namespace import Namespace
from mlx_magic.options import Settings
from mlx_magic.testing import ScriptedBackend

OURS = [
    *("_", "__", "___", "_1", "_23", "_i", "_ii", "_iii", "_i1", "_oh", "_ih", "_dh", "In", "Out"),
    *("exit", "quit", "get_ipython", "_exit_code", "__name__", "__builtins__", "__builtin__"),
    *("__doc__", "__debug__", "__file__", "print", "len", "open", "list", "None", "True", "if"),
]


def fullwidth(text: str) -> str:
    """Return a text in letters that look wider, and that Python reads as the plain ones."""
    return "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalnum() else c for c in text)


OUT = fullwidth("out")


def accepted(name: str) -> str | None:
    try:
        return check_name(name)
    except RequestError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 160
    return None


def assigned(name: str) -> list[str] | None:
    """Return the variables that an assignment to a name makes; None where there can be none."""
    made: dict[str, Any] = {"__builtins__": {}}
    try:
        exec(f"{name} = 1", made)
    except (SyntaxError, ValueError, NameError):
        return None
    del made["__builtins__"]
    return list(made)


def is_taken(name: str) -> bool:
    return (
        keyword.iskeyword(name)
        or name in dir(builtins)
        or name in ("In", "Out", "exit", "quit", "get_ipython", "_exit_code", "_oh", "_ih", "_dh")
        or re.fullmatch(r"__.*__|_{1,3}|_[0-9]+|_i{1,3}|_i[0-9]+", name) is not None
    )


letters = st.text(min_size=1, max_size=6)
words = st.sampled_from(OURS) | st.from_regex(r"[a-z_InOut0-9]{1,4}", fullmatch=True)
wide = (st.sampled_from(OURS) | words).map(fullwidth)


@settings(max_examples=int(os.environ.get("MLX_MAGIC_FUZZ", "500")), deadline=None)
@given(letters | words | wide | st.builds(str.__add__, words, letters))
@example(fullwidth("i") + "n")
@example(fullwidth("O") + "ut")
@example(fullwidth("if"))
@example(fullwidth("p") + "rint")
@example("a①")
@example("ª")
@example("\u037a")
@example("ﬁ")
@example("_१")
@example("a\u00b7")
def test_name_is_accepted_if_python_can_assign_it_and_it_is_free(
    name: str,
) -> None:
    found = accepted(name)
    made = assigned(name) if name.isidentifier() else None
    if made is None or is_taken(unicodedata.normalize("NFKC", name)):
        assert found is None
    else:
        assert [found] == made


@given(st.text("ab_1 =;\n#.,[]*:é①"))
def test_text_that_is_not_a_single_name_is_refused(text: str) -> None:
    if not text.isidentifier():
        assert accepted(text) is None


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("wide", [False, True])
def test_cell_and_panel_refuse_names_that_ipython_needs(name: str, wide: bool) -> None:
    if wide:  # Python reads these as the same names
        name = fullwidth(name)
    with pytest.raises(RequestError) as caught:
        parse_cell(f"-o {name}", "?")
    assert caught.value.option == "output"
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError):
        parse_cell("", "?", Settings(output=name))
    panel = Namespace()
    with pytest.raises(RequestError):
        panel.checked(name)
    with pytest.raises(RequestError):
        panel.define(name, 1)


def test_every_initial_name_of_ipython_is_refused(shell: InteractiveShell) -> None:
    shell.run_cell("1 + 1", store_history=True)
    shell.run_cell("2", store_history=True)
    shell.run_cell("!true")
    for name in [*shell.user_ns_hidden, *(n for n in shell.user_ns if n.startswith("_"))]:
        assert accepted(name) is None, name


@pytest.mark.parametrize(
    "name",
    ["match", "case", "_x", "__x", "x__", "_a1", "größe", "_in", "i1", "out", "In_1"],
)
def test_other_names_are_accepted_unchanged(name: str) -> None:
    assert check_name(name) == name


def test_cell_assigns_the_name_as_python_normalizes_it(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    shell.run_cell_magic("vision", f"-m demo -o {OUT}", "What is it?")
    assert isinstance(shell.user_ns["out"], VisionResult)
    assert OUT not in shell.user_ns
    assert isinstance(shell.ev(OUT), VisionResult)


@pytest.mark.parametrize("name", ["_oh", "In", fullwidth("Out"), "get_ipython", "print"])
def test_refused_name_sends_no_request_and_changes_nothing(
    shell: InteractiveShell, script: ScriptedBackend, name: str
) -> None:
    before = dict(shell.user_ns)
    with pytest.raises(UsageError, match="itself uses"):
        shell.run_cell_magic("vision", f"-m demo -o {name}", "What is it?")
    assert script.requests == []
    assert shell.user_ns == before
