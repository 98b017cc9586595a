"""IPython in a terminal: no kernel, no widgets; the text comes as it is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import checkpoints

from .conftest import ROOT

pytestmark = pytest.mark.kernel

SCRIPT = """
from mlx_magic.testing import use_scripted
ip = get_ipython()
ip.run_line_magic("load_ext", "mlx_magic")
script = use_scripted("Two red squares.", hold={hold!r})
ip.run_cell("%config VisionMagics.model = {model!r}")
ip.run_cell("%%vision -o answer --max-tokens 1000000\\nWhat is this?")
print("after:", answer.finish_reason, answer.text[:16], flush=True)
"""


@contextmanager
def terminal(tmp_path: Path, hold: str | None) -> Iterator[subprocess.Popen[str]]:
    """Run the script in IPython; its standard output is a pipe."""
    model = checkpoints.good(tmp_path / "model")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(hold=hold, model=str(model)), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}
    process = subprocess.Popen(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", str(script)],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_answer_is_printed_once_and_stays(tmp_path: Path) -> None:
    with terminal(tmp_path, hold=None) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert output.splitlines()[-2:] == ["Two red squares.", "after: stop Two red squares."]
    assert output.count("Two red squares.") == 2


def test_interrupt_keeps_the_partial_answer(tmp_path: Path) -> None:
    with terminal(tmp_path, hold="decode") as process:
        assert process.stdout is not None
        seen = ""
        while "squares." not in seen:
            character = process.stdout.read(1)
            assert character, f"the terminal ended early: {seen}"
            seen += character
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in output
    assert output.splitlines()[-1] == "after: cancelled Two red squares."
