from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.errors import ImageError, ImageNotFoundError, MlxMagicError
from mlx_magic.notebook.magic_line.image_arguments import image_values
from mlx_magic.notebook.magic_line.tokens import split_line

NAMESPACE: dict[str, object] = {
    "img": "the image",
    "imgs": ["first", "second"],
    "photo_cat": 1,
    "table": {"a b": [1, 2, 3]},
    "recipes": 3,
}


def evaluate(expression: str) -> object:
    return eval(expression, {}, NAMESPACE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ["receipt.jpg", "my photo.jpg", "img", "imgs[0]", "a1.png", "b.png"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.jpg").write_bytes(b"")
    return tmp_path


def values(line: str, base: Path) -> list[tuple[str, object]]:
    return image_values(split_line(line), NAMESPACE, evaluate, base)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("receipt.jpg", [("receipt.jpg", Path("receipt.jpg"))]),
        ("'my photo.jpg'", [("my photo.jpg", Path("my photo.jpg"))]),
        ("my\\ photo.jpg", [("my photo.jpg", Path("my photo.jpg"))]),
        ("photos/dog.jpg", [("photos/dog.jpg", Path("photos/dog.jpg"))]),
        ("img", [("img", Path("img"))]),
        ("imgs[0]", [("imgs[0]", Path("imgs[0]"))]),
    ],
)
def test_existing_file_takes_precedence(line: str, expected: object, folder: Path) -> None:
    assert values(line, folder) == expected


def test_absolute_paths_and_tilde_are_resolved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    absolute = str(folder / "b.png")
    assert values(absolute, Path("/")) == [(absolute, Path(absolute))]
    assert values("~/b.png", Path("/")) == [("~/b.png", Path("~/b.png"))]
    assert values("~/*.png", Path("/")) == [("~/*.png", "~/*.png")]


def test_current_folder_is_the_default_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert image_values(split_line("b.png"), {}, evaluate) == [("b.png", Path("b.png"))]


@pytest.mark.parametrize(
    "address",
    ["http://example.org/a.jpg", "HTTPS://example.org/a?b[0]=*", "ftp://x/y", "file:///a.jpg"],
)
def test_urls_are_passed_to_the_opener(address: str, empty: Path) -> None:
    assert values(address, empty) == [(address, address)]


def test_a_data_uri_has_a_short_name(empty: Path) -> None:
    uri = "data:image/png;base64," + "A" * 500
    [(name, value)] = values(uri, empty)
    assert value == uri
    assert len(name) == 80


@pytest.mark.parametrize(
    "pattern", ["*.png", "[ab]*.png", "b.pn?", "photos/*.jpg", "**/*.jpg", "'my *.jpg'"]
)
def test_matching_globs_are_passed_to_the_opener(pattern: str, folder: Path) -> None:
    text = pattern.strip("'")
    assert values(pattern, folder) == [(text, text)]


def test_wildcard_characters_in_the_base_folder_are_literal(tmp_path: Path) -> None:
    base = tmp_path / "[x]*"
    base.mkdir()
    (base / "a.png").write_bytes(b"")
    assert values("*.png", base) == [("*.png", "*.png")]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("img", "the image"),
        ("imgs[0]", "first"),
        ("imgs[-1]", "second"),
        ("[img, imgs[1]]", ["the image", "second"]),
        ("table['a b'][1:]", [2, 3]),
        ("photo_cat*2", 2),
        ("[x for x in imgs]", ["first", "second"]),
        ("(lambda a: a)(img)", "the image"),
        ("len(imgs)", 2),
        ("3", 3),
    ],
)
def test_expressions_are_evaluated(line: str, value: object, empty: Path) -> None:
    assert values(line, empty) == [(line, value)]


def test_quoted_word_is_never_an_expression(empty: Path) -> None:
    with pytest.raises(ImageNotFoundError, match=r"^img: no such file"):
        values("'img'", empty)


def test_several_words_keep_their_order(folder: Path) -> None:
    found = values("b.png imgs *.png img", folder)
    assert [name for name, _ in found] == ["b.png", "imgs", "*.png", "img"]


def test_folder_is_passed_to_the_opener_unless_a_variable_has_its_name(folder: Path) -> None:
    assert values("photos", folder) == [("photos", Path("photos"))]
    (folder / "recipes").mkdir()
    assert values("recipes", folder) == [("recipes", 3)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("recept.jpg", "recept.jpg: no such file; did you mean receipt.jpg?"),
        ("photos/dgo.jpg", "photos/dgo.jpg: no such file; did you mean photos/dog.jpg?"),
        ("'my phot.jpg'", "my phot.jpg: no such file; did you mean my photo.jpg?"),
        ("nowhere/x.jpg", "nowhere/x.jpg: no such file."),
        ("/nowhere/x.jpg", "/nowhere/x.jpg: no such file."),
        ("2024-01.jpg", "2024-01.jpg: no such file."),
        ("object.webp", "object.webp: no such file."),
        ("*.tiff", "*.tiff: no file matches."),
        (
            "photo_cta",
            "photo_cta: not a variable, file or URL (quote names that contain spaces); "
            "did you mean photo_cat?",
        ),
        ("imgz[0]", "imgz[0]: name 'imgz' is not defined; did you mean img or imgs?"),
        ("f(qqq)", "f(qqq): name 'f' is not defined."),
        ("not/a/ñ", "not/a/ñ: no such file."),
    ],
)
def test_missing_file_is_an_error_of_one_line_with_suggestions(
    line: str, message: str, folder: Path
) -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        values(line, folder)
    assert str(caught.value) == message


def test_files_and_variables_are_both_suggested(tmp_path: Path) -> None:
    (tmp_path / "photo_cut").write_bytes(b"")
    with pytest.raises(ImageNotFoundError, match=r"did you mean photo_cut or photo_cat\?"):
        values("'photo_caut'", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("imgs[7]", "imgs[7]: IndexError: list index out of range"),
        ("table['x']", "table['x']: KeyError: 'x'"),
        ("img.pixels", "img.pixels: AttributeError: 'str' object has no attribute 'pixels'"),
        ("1/0", "1/0: ZeroDivisionError: division by zero"),
    ],
)
def test_failing_expression_is_named_with_its_error(line: str, message: str, empty: Path) -> None:
    with pytest.raises(ImageError) as caught:
        values(line, empty)
    assert str(caught.value) == message
    assert caught.value.source == line


def test_interrupt_in_an_expression_is_raised(empty: Path) -> None:
    def interrupted(_: str) -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image_values(split_line("img"), NAMESPACE, interrupted, empty)


@pytest.mark.parametrize("line", ["a\0b", "'a\0b*'", "x" * 5000 + ".jpg", "~nobody_at_all/x.jpg"])
def test_impossible_paths_are_missing_files(line: str, empty: Path) -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        values(line, empty)
    assert len(str(caught.value)) < 300


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert values("pipe.jpg", tmp_path) == [("pipe.jpg", Path("pipe.jpg"))]


@given(st.text(min_size=1) | st.text(alphabet="ab.*?[]()/~'\"", min_size=1))
def test_any_word_resolves_or_raises_only_usage_errors(line: str) -> None:
    def fail(expression: str) -> object:
        raise LookupError(expression)

    message = ""
    try:
        image_values(split_line(line), NAMESPACE, fail, Path("/nowhere"))
    except MlxMagicError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{img}", [("img", "the image")]),
        ("{ imgs[1] }", [("imgs[1]", "second")]),
        ("{photo_cat, recipes}", [("{photo_cat, recipes}", {1, 3})]),
    ],
)
def test_variable_in_braces_is_resolved(line: str, expected: object, empty: Path) -> None:
    assert values(line, empty) == expected
