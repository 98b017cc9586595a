"""A notebook run from its top to its end by nbclient, as nbval, papermill and nbconvert do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests import checkpoints

from .conftest import ROOT, version_folder

pytestmark = pytest.mark.kernel

SETUP = """
%load_ext mlx_magic
from PIL import Image
from mlx_magic.testing import use_scripted
script = use_scripted("Two **red** squares.")
img = Image.new("RGB", (40, 20), "red")
"""


def notebook_of(*cells: str) -> Any:
    v4: Any = nbformat.v4  # has no type information
    return v4.new_notebook(cells=[v4.new_code_cell(code) for code in cells])


@pytest.fixture(params=["6.29.5", "7.3.0", "7.4.0"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run cells as a notebook in a kernel of this ipykernel; returns the notebook."""
    folder = version_folder(request.param)
    model = checkpoints.good(tmp_path / "model")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def run_cells(*cells: str) -> Any:
        setup = f"{SETUP}\n%config VisionMagics.model = {str(model)!r}"
        version = "import ipykernel; print(ipykernel.__version__)"
        notebook = notebook_of(version, setup, *cells)
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=30, kernel_name="python3", resources=resources).execute()
        assert notebook.cells[0].outputs[0].text.strip() == request.param
        nbformat.validate(notebook)
        return notebook

    return run_cells


def test_saved_answers_are_readable_without_a_kernel(run: Any) -> None:
    notebook = run(
        "%%vision img -o answer\nWhat is this?",
        "print(answer.text, answer.finish_reason)",
        "%%time\n%%vision img\nAnd nested?",
        "get_ipython().run_cell_magic('vision', '', 'And from code?')",
    )
    asked, printed, timed, coded = notebook.cells[2:]
    assert printed.outputs[0].text == "Two **red** squares. stop\n"
    for cell in (asked, timed, coded):
        assert "Two **red** squares." in json.dumps(cell.outputs)
        assert "widget-view" not in json.dumps(cell.outputs)
    (result,) = asked.outputs
    assert {"text/plain", "text/markdown", "text/html"} <= set(result.data)
    assert "data:image/" in result.data["text/html"]


def test_answers_are_the_same_on_every_run(run: Any) -> None:
    question = "%%vision img\nWhat is this?"
    first, second = (run(question).cells[2].outputs[0].data for _ in range(2))
    assert first == second


def test_usage_error_stops_the_notebook_with_one_line(run: Any) -> None:
    with pytest.raises(CellExecutionError, match="UsageError"):
        run("%%vision no-such-file.png\nWhat is this?", "print('must not run')")
