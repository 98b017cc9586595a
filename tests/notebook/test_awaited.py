"""Which cells are rewritten to await, and which are left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlx_magic.notebook.kernel.async_cells import AwaitedCells


class FakeEvents:
    def __init__(self) -> None:
        self.registered: list[tuple[str, Any]] = []

    def register(self, name: str, function: Any) -> None:
        self.registered.append((name, function))

    def unregister(self, name: str, function: Any) -> None:
        self.registered.remove((name, function))

    def fire(self, name: str) -> None:
        for registered, function in list(self.registered):
            if registered == name:
                function(None)


@pytest.fixture
def ipython() -> SimpleNamespace:
    return SimpleNamespace(
        kernel=object(), autoawait=True, events=FakeEvents(), input_transformers_post=[]
    )


@pytest.fixture
def cells(ipython: SimpleNamespace) -> AwaitedCells:
    cells = AwaitedCells(ipython)
    cells.install()
    return cells


MAGIC = "get_ipython().run_cell_magic('vision', 'a.png', 'What?\\n')\n"
LOAD = "get_ipython().run_line_magic('vision', 'load demo')\n"
AWAITED = "await get_ipython().magics_manager.registry['VisionMagics'].awaited("


def test_a_cell_and_a_load_are_awaited(cells: AwaitedCells) -> None:
    assert cells.transform([MAGIC]) == [AWAITED + "True, 'a.png', 'What?\\n')\n"]
    assert cells.transform([LOAD, "\n"]) == [AWAITED + "True, 'load demo')\n", "\n"]


@pytest.mark.parametrize("command", ["unload --all", "list", "models org/name"])
def test_other_slow_commands_are_awaited(cells: AwaitedCells, command: str) -> None:
    line = f"get_ipython().run_line_magic('vision', '{command}')\n"
    assert cells.transform([line]) == [AWAITED + f"True, '{command}')\n"]


def test_earlier_output_of_the_cell_is_not_cleared(cells: AwaitedCells) -> None:
    assert cells.transform(["# Now\n", LOAD, "x = 1\n"])[1] == AWAITED + "True, 'load demo')\n"
    rewritten = cells.transform(["x = 1\n", LOAD])
    assert rewritten == ["x = 1\n", AWAITED + "False, 'load demo')\n"]


@pytest.mark.parametrize(
    "line",
    [
        "get_ipython().run_line_magic('vision', 'status')\n",
        "get_ipython().run_line_magic('vision', 'unloaded')\n",
        "x = get_ipython().run_line_magic('vision', 'load demo')\n",
        "    get_ipython().run_line_magic('vision', 'load demo')\n",
        "get_ipython().run_cell_magic('time', '', '%%vision\\nWhat?')\n",
        "get_ipython().run_cell_magic('visionary', '', 'x')\n",
        "print('%%vision')\n",
    ],
)
def test_other_cells_are_unchanged(cells: AwaitedCells, line: str) -> None:
    assert cells.transform([line]) == [line]


def test_values_of_all_but_the_last_line_are_displayed(cells: AwaitedCells) -> None:
    status = "get_ipython().run_line_magic('vision', 'status')\n"
    alone = "get_ipython().run_line_magic('vision', '')"
    lines = ["if x:\n", f"    {status}", status, alone, "# the end\n"]
    shown = "get_ipython().magics_manager.registry['VisionMagics'].displayed("
    assert cells.transform(lines) == [
        "if x:\n",
        f"    {shown}{status.strip()})\n",
        f"{shown}{status.strip()})\n",
        alone,
        "# the end\n",
    ]
    listed = cells.transform(["get_ipython().run_line_magic('vision', 'list')\n", status])
    assert listed == [f"{shown}{AWAITED}True, 'list'))\n", status]


def test_magic_without_a_body_reaches_the_magic_where_nothing_is_awaited(
    cells: AwaitedCells, ipython: SimpleNamespace
) -> None:
    ipython.kernel = None
    line = "get_ipython().run_cell_magic('vision', '--help', '')\n"
    expected = "get_ipython().run_cell_magic('vision', '--help', '\\n')\n"
    assert cells.transform([line]) == [expected]
    assert cells.transform([MAGIC]) == [MAGIC]


def test_nothing_is_awaited_inside_a_running_cell(
    cells: AwaitedCells, ipython: SimpleNamespace
) -> None:
    ipython.events.fire("pre_run_cell")
    assert cells.nested
    assert cells.transform([MAGIC]) == [MAGIC]
    ipython.events.fire("post_run_cell")
    assert cells.transform([MAGIC]) != [MAGIC]


def test_end_of_the_cell_that_loads_the_extension_is_ignored(
    cells: AwaitedCells, ipython: SimpleNamespace
) -> None:
    ipython.events.fire("post_run_cell")
    ipython.events.fire("pre_run_cell")
    assert cells.nested


def test_nothing_is_awaited_without_a_kernel(cells: AwaitedCells, ipython: SimpleNamespace) -> None:
    ipython.kernel = None
    assert cells.transform([MAGIC]) == [MAGIC]


def test_nothing_is_awaited_without_autoawait(
    cells: AwaitedCells, ipython: SimpleNamespace
) -> None:
    ipython.autoawait = False
    assert cells.transform([MAGIC]) == [MAGIC]


def test_uninstall_removes_all_hooks(cells: AwaitedCells, ipython: SimpleNamespace) -> None:
    cells.uninstall()
    assert ipython.input_transformers_post == []
    assert ipython.events.registered == []
