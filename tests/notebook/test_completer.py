from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.completer import provisionalcompleter, rectify_completions
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from mlx_magic.notebook.kernel import completer
from mlx_magic.notebook.kernel.completer import list_folder


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder = tmp_path / "work"
    (folder / "photos").mkdir(parents=True)
    for name in ["cat.png", "my photo.jpg", "notes.txt", "photos/dog.jpg"]:
        (folder / name).write_bytes(b"")
    monkeypatch.chdir(folder)
    InteractiveShell.clear_instance()
    ip = InteractiveShell.instance()
    ip.user_ns.update(
        banana=3, module=types, zebra=Image.new("RGB", (1, 1)), photo_paths=["cat.png"]
    )
    completer.install(ip, lambda: ["demo", "qwen"])
    yield ip
    completer.uninstall(ip)
    if ip.history_manager is not None:
        ip.history_manager.end_session()
    InteractiveShell.clear_instance()


def completed(ip: InteractiveShell, cell: str, at: int | None = None) -> list[str]:
    """Return the cell after each completion, as a notebook's kernel computes them."""
    at = len(cell) if at is None else at
    with provisionalcompleter():
        found = list(rectify_completions(cell, ip.Completer.completions(cell, at)))
    return [cell[: item.start] + item.text + cell[item.end :] for item in found]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("%%vision --te", ["%%vision --temperature"]),
        ("%%vision -m q", ["%%vision -m qwen"]),
        ("%%vision cat.png -f m", ["%%vision cat.png -f markdown"]),
        ("%%vision photos/", ["%%vision photos/dog.jpg"]),
        ("%%vision 'my p", ["%%vision 'my photo.jpg'"]),
        ("%%vision my", ["%%vision 'my photo.jpg'"]),
        ("%%vision [zebra, ban", ["%%vision [zebra, banana"]),
        ("%vision lo", ["%vision load"]),
        ("x = 1\n%vision use d", ["x = 1\n%vision use demo"]),
        ("\n\n%%vision --see", ["\n\n%%vision --seed"]),
        ("if x:\n    %vision ca", ["if x:\n    %vision cancel"]),
    ],
)
def test_real_shell_shows_only_our_completions(
    shell: InteractiveShell, cell: str, expected: list[str]
) -> None:
    assert completed(shell, cell) == expected


def test_variables_that_may_be_images_come_first(shell: InteractiveShell) -> None:
    assert completed(shell, "%%vision ") == [
        f"%%vision {word}"
        for word in ["photo_paths", "zebra", "banana", "cat.png", "'my photo.jpg'", "photos/"]
    ]


def test_cursor_can_be_inside_the_line(shell: InteractiveShell) -> None:
    cell = "%%vision --te cat.png\nWhat is it?"
    expected = "%%vision --temperature cat.png\nWhat is it?"
    assert completed(shell, cell, cell.index(" cat")) == [expected]


@pytest.mark.parametrize(
    "cell",
    [
        "%%vision cat.png\nWhat is --te",
        "%%vision cat.png\n%vision lo",
        "%%bash\n%%vision --te",
        "x = 1\n%%vision --te",
        "--te",
        "vision --te",
    ],
)
def test_other_cells_get_none_of_our_completions(shell: InteractiveShell, cell: str) -> None:
    with_ours = completed(shell, cell)
    completer.uninstall(shell)
    assert with_ours == completed(shell, cell)


def test_ordinary_completion_still_works(shell: InteractiveShell) -> None:
    assert "banana" in completed(shell, "bana")
    assert any(line.endswith("zebra.size") for line in completed(shell, "%%vision zebra.siz"))


@pytest.mark.filterwarnings("ignore:`Completer.complete`:PendingDeprecationWarning")
def test_older_completer_interface_gives_the_same(shell: InteractiveShell) -> None:
    line = "%%vision -f ma"
    assert shell.complete("ma", line, len(line)) == ("ma", ["markdown"])
    line = "%vision use "
    assert shell.complete("", line, len(line))[1] == ["demo", "qwen"]


def test_second_install_has_no_effect(shell: InteractiveShell) -> None:
    completer.install(shell, lambda: ["other"])
    assert completed(shell, "%vision use ") == ["%vision use other"]
    assert len(shell.Completer.custom_matchers) == 1


def test_uninstall_removes_the_completer(shell: InteractiveShell) -> None:
    shell.Completer.custom_matchers.append(print)
    completer.uninstall(shell)
    completer.uninstall(shell)
    assert shell.Completer.custom_matchers == [print]
    shell.Completer.custom_matchers.clear()
    assert "%%vision --temperature" not in completed(shell, "%%vision --te")


def test_completed_folders_end_with_a_slash(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    assert list_folder(str(tmp_path)) == ["a.png", "b/"]


@pytest.mark.parametrize("folder", ["/nowhere/at/all/", "a\0b", "~nobody_at_all/"])
def test_unreadable_folder_gives_no_completions(folder: str) -> None:
    assert list_folder(folder) == []
