"""Cells with ``--map``, their table and gallery, and ``%vision journal``, without a kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

import mlx_magic
from mlx_magic import MapResult
from mlx_magic.data.mapping.result import MapProgress
from mlx_magic.notebook.maps import table
from mlx_magic.notebook.maps.terminal_line import progress_words
from mlx_magic.testing import ScriptedBackend


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the working directory a folder with images and a table of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    Path("shots").mkdir()
    for at in range(13):
        Image.new("RGB", (6, 4), (at, 0, 9)).save(f"shots/{at}.png")
    Path("rows.csv").write_text("file,price,unit price\nshots/0.png,3,low\nshots/1.png,,high\n")
    return tmp_path


def cell(shell: InteractiveShell, line: str, body: str = "What?") -> MapResult:
    shell.run_cell_magic("vision", f"{line} --map -o result", body)
    result = shell.user_ns["result"]
    assert isinstance(result, MapResult)
    return result


def test_cell_asks_about_each_image(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.user_ns["word"] = "color"
    result = cell(shell, "shots --limit 12 --seed 4", "Which {word}?")
    assert shell.user_ns["_"] is result
    assert {request.prompt for request in script.requests} == {"Which color?"}
    assert {len(request.images) for request in script.requests} == {1}
    assert {request.sampling.seed for request in script.requests} == {4}
    out = capsys.readouterr().out
    assert out.startswith("12 rows, no errors.\nimage")
    assert "… and 2 more rows in .frame" in out
    assert cell(shell, "shots/1.png shots/2.png").frame["image"].tolist() == [
        "shots/1.png",
        "shots/2.png",
    ]


def test_columns_fill_the_prompt_of_a_cell(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    shell.user_ns["unit"] = "euro"
    result = cell(shell, "rows.csv#file", "{price} {unit} {unit price} {{price}} {1 + 1}?")
    assert [request.prompt for request in script.requests] == ["3 euro low {price} 2?"]
    assert str(result[1].error) == "This row has no value in the column price."
    assert result.frame["image"].tolist() == ["shots/0.png", "shots/1.png"]


@pytest.mark.parametrize(
    ("line", "body", "message"),
    [
        ("--map", "What?", "--map needs images"),
        ("shots --limit 3", "What?", "--limit is for a map: add --map."),
        ("shots --no-journal", "What?", "--journal is for a map: add --map."),
        ("shots --map --limit 0", "What?", "--limit is 0: use a whole number of 1 or more."),
        ("shots --map --limit", "What?", "--limit needs a value"),
        ("shots --map --journal a --no-journal", "What?", "exclude each other"),
        ("shots --map --map", "What?", "--map is given twice."),
        ("shots --map=3", "What?", "--map takes no value."),
        ("nothing.csv#a --map", "What?", "nothing.csv cannot be read: No such file"),
        ("rows.csv --map", "What?", "has the columns file, price, unit price: name that of the"),
        ("rows.csv#fil --map", "What?", "has no column fil: did you mean file?"),
        ("rows.csv#file --map", "{prices}", "name 'prices' is not defined"),
        ("rows.csv#file --map", "{price}", "{price} is a column and a variable: rename one"),
        ("shots --map --journal rows.csv", "What?", "rows.csv is no journal, or is damaged"),
    ],
)
def test_mistakes_in_a_cell_are_one_line(
    line: str, body: str, message: str, shell: InteractiveShell, script: ScriptedBackend
) -> None:
    if "rename" in message:
        shell.user_ns["price"] = 5
    with pytest.raises(UsageError) as caught:
        shell.run_cell_magic("vision", line, body)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert script.requests == []


def test_schema_of_a_cell_makes_columns(shell: InteractiveShell, script: ScriptedBackend) -> None:
    script.pieces = ['{"color": "red", "count": 3}']
    shell.user_ns["shape"] = "color: str, count: int"
    result = cell(shell, "shots --limit 2 --schema shape")
    assert result.frame[["color", "count"]].to_numpy().tolist() == [["red", 3]] * 2


def test_table_has_thumbnails_counts_and_errors(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    script.pieces = ["<b>It</b> | is\nred."]
    Path("shots/12.png").write_text("no image")
    result = cell(shell, "shots")
    shown = table.bundle(result)
    assert shown["text/html"].count("<img ") == 10
    assert "&lt;b&gt;It&lt;/b&gt; | is red." in shown["text/html"]
    assert "<b>" not in shown["text/html"]
    assert shown["text/plain"].startswith("13 rows, 1 error.\n")
    assert shown["text/plain"].splitlines()[-1].startswith("shots/12.png: shots/12.png is a text")
    # The same on each run, whether the answers are new or stored.
    assert table.bundle(cell(shell, "shots")) == shown
    Image.new("RGB", (9, 9), "white").save("shots/3.png")
    Path("shots/4.png").unlink()
    html = table.bundle(result)["text/html"]
    assert html.count("changed since") == 1
    assert html.count("(no picture)") == 1


def test_gallery_shows_each_image_with_its_answer(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    result = mlx_magic.map({"a": "What?", "b": "Where?"}, "shots", limit=2)
    gallery = result.gallery()
    shown = table.gallery_bundle(gallery)
    assert shown["text/html"].count("<img ") == len(gallery.rows) == 4
    assert "shots/1.png: It is **red**." in shown["text/plain"]


def test_journal_command_lists_exports_and_forgets(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(text: str) -> Any:
        return shell.run_line_magic("vision", f"journal {text}")

    with pytest.raises(UsageError, match="There is no journal"):
        line("")
    cell(shell, "shots --limit 3")
    listed = line("")
    [row] = listed.rows
    assert (row[0], row[2], row[4], row[5]) == ("1", "What?", "3 images", "3")
    capsys.readouterr()
    line("--export answers.jsonl")
    assert capsys.readouterr().out == "Wrote 3 answers to answers.jsonl.\n"
    assert len(Path("answers.jsonl").read_text().splitlines()) == 3
    json.loads(Path("answers.jsonl").read_text().splitlines()[0])
    line("1 --forget")
    assert capsys.readouterr().out == "Deleted 3 answers.\n"
    assert line("").rows == ()
    for wrong in ("1", "--forget", "x --forget", "1 2 --forget", "9 --forget",
                  "1 --forget --export a", "--journal rows.csv"):  # fmt: skip
        with pytest.raises(UsageError):
            line(wrong)
    shell.run_line_magic("config", "VisionMagics.journal = 'other.sqlite'")
    cell(shell, "shots --limit 2")
    assert line("").rows[0][5] == "2"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (MapProgress(), "0"),
        (MapProgress(3, 10, 1, 0, 1.0, 2.5, 2.8), "3 of 10 · 2.5/s · 3 s left · 1 error"),
        (MapProgress(10, 10, 2, 4, 1.0, 250.0, 0.0), "10 of 10 · 250/s · 4 from the journal · "
         "2 errors"),
        (MapProgress(1_000, None, paused=True), "1,000 · paused"),
    ],
)  # fmt: skip
def test_progress_is_one_line(state: MapProgress, words: str) -> None:
    assert progress_words(state) == words
