"""The folder in which MLX's CPU backend compiles, and errors if it cannot."""

from __future__ import annotations

import locale
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_magic.backends.device import jit_folder
from mlx_magic.backends.device import platform as device_platform
from mlx_magic.backends.library_errors import generation_error, load_error
from mlx_magic.backends.loading import library_environment
from mlx_magic.errors import CheckpointError, GenerationError
from mlx_magic.models.checkpoints import checkpoint
from tests import checkpoints

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="not there")

COMMAND = (
    "[Compile::eval_cpu] Failed to compile function {0}: Failed to execute command with return "
    'code 1: "g++ -std=c++17 -O3 -Wall -fPIC -shared "/t/tmp_9.cpp" -o "/t/tmp_9.so" 2>&1", the '
    "output is: /t/tmp_9.cpp:1: {1}\ncompilation terminated.\n"
)


class Mlx:
    """As much of mlx.core as decides whether it compiles."""

    __version__ = "9.9"

    def __init__(self) -> None:
        self.compiles = True

    def disable_compile(self) -> None:
        self.compiles = False


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_default_jit_folder_is_unchanged(temporary: Path, tmp_path: Path) -> None:
    mlx = Mlx()
    found = jit_folder.choose_jit_folder(mlx, [tmp_path / "other"])
    assert found == jit_folder.Compiling(temporary)
    assert mlx.compiles
    assert os.environ["TMPDIR"] == str(temporary)
    assert not (tmp_path / "other").exists()
    assert list(temporary.iterdir()) == []


def no_folder(folder: Path) -> str:
    folder.rmdir()
    return "is no folder"


def file_of_mlx(folder: Path) -> str:
    (folder / "mlx").write_text("")
    return "mlx is no folder"


def file_of_version(folder: Path) -> str:
    (folder / "mlx").mkdir()
    (folder / "mlx" / "9.9").write_text("")
    return "9.9 is no folder"


def link_to_nowhere(folder: Path) -> str:
    (folder / "mlx").symlink_to(folder / "gone")
    return "mlx is no folder"


def open_to_all(folder: Path) -> str:
    (folder / "mlx" / "9.9" / "cpu").mkdir(parents=True)
    (folder / "mlx" / "9.9" / "cpu").chmod(0o777)
    return "other people can change"


SPOILED = [no_folder, file_of_mlx, file_of_version, link_to_nowhere, open_to_all]


@pytest.mark.parametrize("spoil", SPOILED)
def test_fallback_jit_folder_is_used_and_reported(
    temporary: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    why = spoil(temporary)
    mlx, other = Mlx(), tmp_path / "deep" / "other"
    (tmp_path / "file").write_text("")
    found = jit_folder.choose_jit_folder(mlx, [tmp_path / "file" / "x", other])
    assert found.folder == other
    assert why in found.problem
    assert os.environ["TMPDIR"] == str(other)
    assert other.stat().st_mode & 0o077 == 0
    assert mlx.compiles


@pytest.mark.parametrize("name", ["", "a$(touch x)b", 'a"b', "a`b`", "a\\b"])
def test_folder_with_shell_characters_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(folder) if name else "")
    mlx = Mlx()
    found = jit_folder.choose_jit_folder(mlx, [])
    assert found.folder is None
    assert not mlx.compiles
    assert "set TMPDIR to a folder that can be written to" in found.words


def test_folder_with_spaces_and_umlauts_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tmp of Jürgen"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    assert jit_folder.choose_jit_folder(Mlx(), []).problem == ""


def test_full_or_read_only_folder_is_detected(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        assert jit_folder.unusable(str(temporary)) == f"{temporary}: No space left on device"
    if hasattr(os, "ST_NOEXEC"):
        real = os.statvfs(temporary)
        fields = [*real]
        fields[8] |= os.ST_NOEXEC
        monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
        assert "noexec" in jit_folder.unusable(str(temporary))


def test_folder_of_another_user_is_not_used(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary / "mlx").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    if (temporary / "mlx").stat().st_uid == 0:
        os.chown(temporary / "mlx", 4343, -1)
    found = jit_folder.choose_jit_folder(Mlx(), [])
    assert "other people can change" in found.problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (COMMAND.replace("{1}", "fatal error: error closing /t/x.s: No space left on device"),
         "no space left"),
        (COMMAND.replace("{1}", "fatal error: 'cmath' file not found"), "'cmath' file not found"),
        ("filesystem error: temp_directory_path: No such file or directory", "No such file"),
        ("filesystem error: cannot create directories: Read-only [/x/mlx]", "Read-only"),
        ("Could not load C++ shared library /t/a.so: too short", "cannot be used"),
    ],
)  # fmt: skip
def test_compiler_error_is_one_line_with_the_remedy(
    text: str, words: str, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlx = Mlx()
    monkeypatch.setitem(sys.modules, "mlx.core", mlx)
    monkeypatch.setattr(device_platform, "_compiling", None)
    error = generation_error("m", RuntimeError(text))
    assert isinstance(error, GenerationError)
    assert str(error).startswith(f"m: MLX could not compile in {temporary} (")
    assert words in str(error)
    assert "g++" not in str(error)
    assert "set TMPDIR to another folder" in str(error)
    assert not mlx.compiles  # so that the next request is answered
    found = device_platform.compiles()
    assert found is not None
    assert words in found.problem
    model = checkpoint.inspect(checkpoints.good(tmp_path / "m"), "m")
    assert isinstance(load_error("mlx-lm", model, RuntimeError(text)), CheckpointError)


def test_other_errors_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    mlx = Mlx()
    monkeypatch.setitem(sys.modules, "mlx.core", mlx)
    error = generation_error("m", RuntimeError("out of memory"))
    assert str(error) == "m failed while it answered: RuntimeError: out of memory"
    assert mlx.compiles


def test_default_environment_is_not_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library_environment, "_is_utf8", lambda: True)
    monkeypatch.setattr(os, "chdir", lambda path: pytest.fail("moved"))
    monkeypatch.setattr(locale, "setlocale", lambda *_: pytest.fail("changed"))
    with library_environment.usual(), library_environment.usual():
        assert Path.cwd() == tmp_path


def test_deleted_working_directory_is_restored_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with library_environment.usual():
        with library_environment.usual():
            assert Path.cwd() == Path("/")
        assert Path.cwd() == Path("/")
    with pytest.raises(FileNotFoundError):
        Path.cwd()
