from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.errors import RequestError
from mlx_magic.notebook.kernel.completer import Completion, complete
from mlx_magic.notebook.magic_line.tokens import split_line

FOLDERS = {
    "": [".git/", ".hidden.png", "a.txt", "cat.PNG", "car.jpg", "my dir/", "my photo.jpg",
         "photos/"],
    "photos/": ["dog.jpg", "notes.md", "old/"],
    "my dir/": ["it's.png", "x y.png"],
    "~/": ["home.jpg"],
    "./": ["cat.PNG", "photos/"],
}  # fmt: skip
MODELS = ["demo", "qwen", "org/demo-2", "my model"]
NAMES = ["img", "imgs", "car", "_secret", "text"]


def completed(line: str) -> list[Completion]:
    return complete(
        line,
        models=lambda: MODELS,
        files=lambda folder: FOLDERS.get(folder, []),
        names=lambda: NAMES,
    )


def lines(line: str) -> list[str]:
    """Return the line as it would be after each completion."""
    return [line[: item.start] + item.text for item in completed(line)]


@pytest.mark.parametrize(
    "line",
    ["", "vision ", "%%visio", "%%vision", "%vision", "%%time ", "x = %vision ", "%%visions im",
     "# %%vision ", "img", "%%%vision ", "% vision "],
)  # fmt: skip
def test_other_lines_are_not_completed(line: str) -> None:
    assert completed(line) == []


def test_an_empty_line_offers_variables_first_then_files() -> None:
    assert lines("%%vision ") == [
        "%%vision img", "%%vision imgs", "%%vision car", "%%vision text",
        "%%vision cat.PNG", "%%vision car.jpg", "%%vision 'my dir/",
        "%%vision 'my photo.jpg'", "%%vision photos/",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%%vision im", ["img", "imgs"]),
        ("%%vision ca", ["car", "cat.PNG", "car.jpg"]),
        ("  %%vision _", ["_secret"]),
        ("%%vision .", [".git/", ".hidden.png"]),
        ("%%vision photos/", ["photos/dog.jpg", "photos/old/"]),
        ("%%vision photos/d", ["photos/dog.jpg"]),
        ("%%vision ~/h", ["~/home.jpg"]),
        ("%%vision 'my", ["'my dir/", "'my photo.jpg'"]),
        ('%%vision "my', ['"my dir/', '"my photo.jpg"']),
        ("%%vision my\\ p", ["'my photo.jpg'"]),
        ("%%vision 'my dir/x", ["'my dir/x y.png'"]),
        ("%%vision 'my dir/i", ['"my dir/it\'s.png"']),
        ("%%vision a.jpg -o x im", ["img", "imgs"]),
        ("%%vision -- im", ["img", "imgs"]),
        ("%%vision zzz", []),
        ("%%vision img.", []),
    ],
)
def test_images_are_completed(line: str, expected: list[str]) -> None:
    found = completed(line)
    assert [item.text for item in found] == expected
    assert len({item.start for item in found}) <= 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%%vision [im", ["%%vision [img", "%%vision [imgs"]),
        ("%%vision [img, c", ["%%vision [img, car"]),
        ("%%vision f(te", ["%%vision f(text"]),
        ("%%vision [-i", ["%%vision [-img", "%%vision [-imgs"]),
        ("%%vision [img.s", []),
        ("%%vision table['im", []),
        ("%%vision [img ", []),
        ("%%vision [3", []),
    ],
)
def test_variables_are_completed_inside_brackets(line: str, expected: list[str]) -> None:
    assert lines(line) == expected


def test_an_open_bracket_offers_each_variable() -> None:
    assert lines("%%vision [img, ") == [
        f"%%vision [img, {name}" for name in NAMES if name[0] != "_"
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "%%vision --m",
            ["--model", "--max-tokens", "--min-p", "--multiple", "--map", "--max-pixels"],
        ),
        ("%%vision a.jpg --no", ["--no-think", "--no-show", "--no-journal", "--no-normalize"]),
        (
            "%%vision -m demo --m",
            ["--max-tokens", "--min-p", "--multiple", "--map", "--max-pixels"],
        ),
        ("%%vision --max-tokens=3 --max-", ["--max-pixels"]),
        ("%%vision --st", ["--stop"]),
        ("%%vision --ti", ["--timeout"]),
        ("%%vision --kv", ["--kv-bits"]),
        ("%%vision --kv-bits ", ["4", "8"]),
        ("%%vision --sch", ["--schema"]),
        ("%%vision -- --m", []),
        ("%%vision -f ", ["markdown", "text", "json", "raw"]),
        ("%%vision --format j", ["json"]),
        ("%%vision --format=j", ["json"]),
        ("%%vision --nothing=j", []),
        ("%%vision -m ", ["demo", "qwen", "org/demo-2", "'my model'"]),
        ("%%vision -m=d", ["demo"]),
        ("%%vision --model org", ["org/demo-2"]),
        ("%%vision --model 'my", ["'my model'"]),
        ("%%vision -m ./", ["./photos/"]),
        ("%%vision --system i", []),
        ("%%vision -o i", []),
        ("%%vision --max-tokens ", []),
    ],
)
def test_flags_and_their_values_are_completed(line: str, expected: list[str]) -> None:
    assert [item.text for item in completed(line)] == expected


def test_dash_offers_only_implemented_flags() -> None:
    found = {item.text for item in completed("%%vision -")}
    assert {"-m", "--model", "-f", "--no-show"} <= found
    assert not found & {"-c", "--chat", "--detach", "--reset"}


def test_completion_after_an_equals_sign_replaces_only_the_value() -> None:
    assert lines("%%vision --format=j") == ["%%vision --format=json"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "%vision ",
            [
                "load",
                "unload",
                "pin",
                "unpin",
                "list",
                "models",
                "status",
                "use",
                "cancel",
                "panel",
                "journal",
                "help",
            ],
        ),
        ("%vision l", ["load", "list"]),
        ("%vision load ", ["demo", "qwen", "org/demo-2", "'my model'"]),
        ("  %vision use q", ["qwen"]),
        ("%vision unload d", ["demo"]),
        ("%vision unload -", ["--all", "--force"]),
        ("%vision unpin d", ["demo"]),
        (
            "%vision load demo -",
            ["--as", "--trust-remote-code", "--pin", "--adapter", "--save"],
        ),
        ("%vision load demo --adapter p", ["photos/"]),
        ("%vision load --adapter x d", ["demo"]),
        ("%vision models q", ["qwen"]),
        ("%vision load demo --as ", []),
        ("%vision load demo ", []),
        ("%vision load --as x d", ["demo"]),
        ("%vision load --trust-remote-code d", ["demo"]),
        ("%vision load ./p", ["./photos/"]),
        ("%vision list ", []),
        ("%vision nonsense ", []),
        ("%vision pan", ["panel"]),
    ],
)
def test_subcommands_and_models_are_completed(line: str, expected: list[str]) -> None:
    assert [item.text for item in completed(line)] == expected


def test_each_completion_has_its_type() -> None:
    kinds = {
        item.kind
        for line in ["%%vision ", "%%vision -", "%%vision -f ", "%%vision -m ", "%vision "]
        for item in completed(line)
    }
    assert kinds == {"instance", "path", "option", "choice", "model", "subcommand"}


def test_sources_are_queried_only_if_needed() -> None:
    def unneeded(*_: object) -> list[str]:
        raise AssertionError("asked")

    assert complete("%vision lo", models=unneeded, files=unneeded, names=unneeded)
    assert complete("%%vision -f ", models=unneeded, files=unneeded, names=unneeded)
    assert complete("x", models=unneeded, files=unneeded, names=unneeded) == []


@given(st.text(alphabet="ab 'c\"d[]()\\.-*?é", min_size=1).filter(lambda name: name[0] != "."))
def test_a_completed_file_is_read_back_as_one_word(name: str) -> None:
    entry = name + ".png"
    [found] = complete("%%vision ", models=list, files=lambda _: [entry], names=list)
    [token] = split_line(found.text)
    assert token.text == entry
    assert token.quoted or token.raw == entry


@given(st.text() | st.text(alphabet="im g'\"[(-=/.\\"))
def test_any_line_completes_without_error(text: str) -> None:
    for magic in ("%%vision ", "%vision load "):
        for line in lines(magic + text):
            message = "quote"
            try:
                split_line(line)
            except RequestError as error:
                message = str(error)
            assert "quote" in message
