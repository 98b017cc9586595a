"""Unusual machines: the same answers, or an error of one line with a remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(sys.platform != "linux", reason="MLX compiles with g++ on Linux alone"),
]

CHILD = "tests.hostile.conditions"

Outcomes = dict[str, tuple[str, str]]

ASCII = {
    "LC_ALL": "C",
    "LANG": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
}
# A compiler that is there, and finds the disk full.
FULL_DISK = """#!/bin/sh
[ "$1" = --version ] && exit 0
echo "x.cpp:1: fatal error: error writing to /tmp/cc.s: No space left on device" >&2
exit 1
"""


def run(
    tmp_path: Path,
    *how: str,
    closed: str = "",
    without: tuple[str, ...] = (),
    environment: Mapping[str, str],
) -> Outcomes:
    """Ask in a process of these conditions; nothing that it says may be anything but ours."""
    out = tmp_path / "outcomes"
    own = {
        "MLX_MAGIC_CONFIG": str(tmp_path / "config"),
        "MLX_MAGIC_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    whole: Mapping[str, str] = {**os.environ, **own, **environment}
    command = f'exec "$@" {closed}'
    subprocess.run(
        ["/bin/sh", "-c", command, "sh", sys.executable, "-m", CHILD, str(out), *how],
        env={name: value for name, value in whole.items() if name not in without},
        cwd=ROOT,
        timeout=100,
        check=False,
        capture_output=True,
    )
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    outcomes: Outcomes = {label: (kind, words) for label, kind, words in lines}
    assert list(outcomes)[-1] == "standard files", outcomes
    for label, (kind, words) in outcomes.items():
        assert not kind.startswith("!"), (label, kind, words)
        assert not kind or (words.isprintable() and len(words) <= 1000), (label, words)
        assert not kind or "g++" not in words, (label, words)
    for label in ("unknown", "of nobody", "adapter of nobody"):
        assert outcomes[label][0] == "ModelNotFoundError"
    assert outcomes["image of nobody"][0] == "ImageNotFoundError"
    assert outcomes["standard files"] == ("", "open")
    return outcomes


ANSWERS = ("ask", "again", "image", "stream")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Return the answers under normal conditions."""
    found = run(tmp_path_factory.mktemp("plain"), environment={})
    assert all(found[label][0] == "" and found[label][1] for label in ANSWERS)
    assert found["save"][0] == ""
    return found


def require_answers(found: Outcomes, plain: Outcomes) -> None:
    """Require the answers to be the same as ever."""
    assert {label: found[label] for label in ANSWERS} == {label: plain[label] for label in ANSWERS}


def test_missing_tmpdir_compiles_in_the_cache_folder(tmp_path: Path, plain: Outcomes) -> None:
    environment = {"TMPDIR": str(tmp_path / "nowhere")}
    found = run(tmp_path, closed="<&- >&- 2>&-", environment=environment)
    require_answers(found, plain)
    assert found["temporary"][1] == str(tmp_path / "cache" / "compiled")
    assert list((tmp_path / "cache" / "compiled").rglob("*.so"))
    assert f"{tmp_path / 'nowhere'} is no folder" in found["device"][1]


def test_full_disk_is_an_error_of_one_line_and_the_next_request_works(
    tmp_path: Path, plain: Outcomes
) -> None:
    compiler = tmp_path / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.write_text(FULL_DISK)
    compiler.chmod(0o755)
    place = tmp_path / "tmp"
    place.mkdir()
    path = f"{compiler.parent}:{os.environ['PATH']}"
    found = run(tmp_path, environment={"TMPDIR": str(place), "PATH": path})
    kind, words = found["ask"]
    assert kind == "GenerationError"
    assert words.startswith(f"demo: MLX could not compile in {place} (no space left). Ask again")
    assert found["again"] == plain["again"]
    assert found["image"] == plain["image"]


def test_answers_are_the_same_without_a_compiler_and_with_32_open_files(
    tmp_path: Path, plain: Outcomes
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    environment = {"TMPDIR": str(place), "PATH": str(tmp_path / "bin")}
    require_answers(run(tmp_path, "nofiles", environment=environment), plain)


def test_ascii_locale_missing_cwd_and_missing_home_change_no_answer(
    tmp_path: Path, plain: Outcomes
) -> None:
    found = run(
        tmp_path,
        "gone",
        "nohome",
        without=("MLX_MAGIC_CONFIG", "MLX_MAGIC_CACHE", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"),
        environment=ASCII,
    )
    require_answers(found, plain)
    assert found["save"] == (
        "RequestError",
        "Aliases cannot be kept without a home folder: set MLX_MAGIC_CONFIG to a folder.",
    )


def test_unusable_folders_disable_only_their_feature(tmp_path: Path, plain: Outcomes) -> None:
    (tmp_path / "mlx").write_text("in its place")
    inside = str(tmp_path / "mlx" / "x")
    environment = {
        "TMPDIR": str(tmp_path),
        "MLX_MAGIC_CONFIG": inside,
        "MLX_MAGIC_CACHE": "~nosuchuser/cache",
        "MLX_MAGIC_OPENBLAS": "perhaps",
        "HF_HOME": inside,
        "HF_HUB_CACHE": inside,
    }
    found = run(tmp_path, "nowhere", environment=environment)
    require_answers(found, plain)
    assert "set TMPDIR to a folder" in found["device"][1]
    assert f"{tmp_path / 'mlx'} is no folder" in found["device"][1]
    kind, words = found["save"]
    assert kind == "RequestError"
    assert "cannot be changed (Not a directory)" in words
    assert f"{inside}/aliases.toml is not read: Not a directory" in found["unknown"][1]


SCRIPT = """
from mlx_magic.testing import use_scripted
import mlx_magic
from mlx_magic import default_session
from mlx_magic.models.catalog.alias_file import AliasTarget
ip = get_ipython()
ip.run_line_magic("load_ext", "mlx_magic")
use_scripted("Zwei W\\u00fcrfel \\u6a21\\ud800.")
default_session.current().names.give("m\\u00f6del", AliasTarget(str(mlx_magic.demo_model()), None))
for cell in [
    "%%vision -o r\\nWas?", "r", "%vision list", "%vision load m\\u00f6del", "%vision list",
    "%vision use m\\u00f6del", "%vision status", "%vision load n\\u00f6", "%vision help",
    "%vision unload m\\u00f6del", "mlx_magic.pool",
]:
    ip.run_cell(cell)
print("done")
"""


def test_ascii_terminal_shows_answers_and_tables(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {
        **os.environ,
        **ASCII,
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", str(script)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    said = done.stdout.decode("ascii")
    shown = said + done.stderr.decode("ascii")
    assert "Traceback" not in shown
    assert "UnicodeEncodeError" not in shown
    assert said.rstrip().endswith("done")
    assert shown.count("Zwei W\\xfcrfel \\u6a21") == 2
    assert "Loaded m\\xf6del" in shown
    assert "There is no model 'n\\xf6'" in shown
