from __future__ import annotations

import io
import keyword
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlx_magic.engine.result import VisionResult
from mlx_magic.errors import RequestError
from mlx_magic.images.image import make_image_input
from mlx_magic.images.opening import open_images
from mlx_magic.notebook.magic_line.image_variables import (
    MOST_STATS,
    MOST_VARIABLES,
    image_variables,
)
from mlx_magic.notebook.magic_line.variable_names import check_name, describe_existing, free_name


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "cat.png")
    return tmp_path


def red() -> Image.Image:
    return Image.new("RGB", (40, 20), "red")


def what(value: object) -> str:
    return "".join(found.what for found in image_variables({"x": value}))


def values() -> Iterator[tuple[object, str]]:
    image = make_image_input(red(), "red.png")
    yield red(), "PIL image 40x20"
    yield np.zeros((20, 40), np.uint8), "array 20x40"
    yield np.zeros((20, 40, 3)), "array 20x40x3"
    yield np.zeros((3, 20, 40), np.float32), "array 3x20x40"
    yield np.zeros((5, 20, 40, 4), np.uint8), "array 5x20x40x4"
    yield image, "image 40x20"
    yield VisionResult("a", "m", "stop", images=(image,)), "result with 1 image"
    yield VisionResult("a", "m", "stop", images=(image, image)), "result with 2 images"
    yield "cat.png", "file cat.png"
    yield Path("cat.png"), "file cat.png"
    yield [red()], "1 image"
    yield (red(), "cat.png", np.zeros((20, 40))), "3 images"


@pytest.mark.parametrize(("value", "expected"), list(values()), ids=lambda value: str(value)[:20])
def test_variables_with_images_are_listed_and_can_be_opened(value: object, expected: str) -> None:
    assert what(value) == expected
    assert open_images(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        "cat",
        "missing.png",
        "https://x.example/cat.png",
        "a\0.png",
        "~nobody-of-this-name/cat.png",
        "x" * 300 + ".png",
        "x" * 5_000 + ".png",
        "",
        [],
        (),
        ["a", "b"],
        [red(), 3],
        [[red()]],
        [red()] * 65,
        {"a": red()},
        {1},
        red,
        Image.Image,
        Image,
        np.zeros(10),
        np.zeros((1797, 64)),
        np.zeros((4, 4)),
        np.zeros((20, 40, 7)),
        np.zeros((100, 20, 40, 3), np.uint8),
        np.zeros((20, 40), complex),
        np.zeros((2, 2, 2, 2, 2)),
        np.zeros((0, 40, 3)),
        np.broadcast_to(np.uint8(0), (20_000, 20_000)),
        VisionResult("a", "m", "stop"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_variables_without_images_are_not_listed(value: object) -> None:
    assert what(value) == ""


def test_folder_with_an_image_file_name_is_not_listed(folder: Path) -> None:
    (folder / "folder.png").mkdir()
    assert what("folder.png") == ""


def test_matplotlib_figures_and_pandas_columns_are_listed() -> None:
    from matplotlib.figure import Figure

    pandas: Any = pytest.importorskip("pandas")
    figure = Figure()
    assert what(figure) == "figure"
    assert what(figure.subplots()) == "axes"
    assert what(pandas.Series([red(), red()])) == "2 images"
    assert what(pandas.Series(["cat.png"])) == "1 image"
    assert what(pandas.Series(["cat", "dog"])) == ""
    assert what(pandas.Series([1, 2])) == ""
    assert what(pandas.DataFrame({"a": [1]})) == ""


def _png() -> bytes:
    buffer = io.BytesIO()
    red().save(buffer, "PNG")
    return buffer.getvalue()


def columns() -> Iterator[tuple[object, str]]:
    pandas: Any = pytest.importorskip("pandas")
    polars: Any = pytest.importorskip("polars")
    pyarrow: Any = pytest.importorskip("pyarrow")
    datasets: Any = pytest.importorskip("datasets")
    png, words = _png(), ["cat", "dog"]
    record = {"bytes": png, "path": "cat.png"}
    table = datasets.Dataset.from_dict(
        {"image": [red(), red()], "file": ["cat.png"] * 2, "label": [1, 2], "word": words},
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "file": datasets.Value("string"),
                "label": datasets.Value("int64"),
                "word": datasets.Value("string"),
            }
        ),
    )
    undecoded = table.cast_column("image", datasets.Image(decode=False))
    yield png, "PNG file in memory"
    yield [png, png], "2 images"
    yield pandas.Series([png]), "1 image"
    yield pandas.Series([record, record]), "2 images"
    for make in (polars.Series, pyarrow.array, lambda values: pyarrow.chunked_array([values])):
        yield make([png, png]), "2 images"
        yield make(["cat.png"]), "1 image"
        yield make([record]), "1 image"
        yield make([{"bytes": None, "path": "cat.png"}]), "1 image"
        yield make(words), ""
        yield make([1, 2]), ""
        yield make([[1.0] * 9] * 3), ""
        yield make([b"words"]), ""
        yield make([png] * 65), ""
    yield table["image"], "2 images"
    yield undecoded["image"], "2 images"
    yield table["file"], "2 images"
    yield table["label"], ""
    yield table["word"], ""
    yield table.to_iterable_dataset()["image"], "images"
    yield table.to_iterable_dataset()["word"], ""
    yield table, ""


def test_columns_of_other_libraries_are_listed_if_they_hold_images() -> None:
    for value, expected in columns():
        assert what(value) == expected, repr(value)[:80]
        if expected:
            assert open_images(value)


def test_images_of_a_dataset_are_not_decoded_to_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets: Any = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [red()]}, features=features)

    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(datasets.Image, "decode_example", decode)
    assert what(table["image"]) == "1 image"


def test_ipython_and_private_names_are_not_listed() -> None:
    namespace: dict[str, object] = dict.fromkeys(["_", "_1", "_x", "In", "Out", "b", "A"], red())
    assert [found.name for found in image_variables(namespace)] == ["A", "b"]


def test_no_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {"numpy", "pandas", "matplotlib.figure", "polars", "pyarrow", "datasets"}
    for name in (*libraries, "PIL.Image", "matplotlib.axes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert image_variables({"x": 3, "y": object()}) == []
    assert not libraries & sys.modules.keys()


def test_no_property_of_an_unknown_class_is_read() -> None:
    class Trap:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"read {name}")

        def __len__(self) -> int:
            raise AssertionError("asked for its length")

        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise AssertionError("asked for its class")

        @property
        def size(self) -> Any:
            raise AssertionError("read size")

    class Words(list[str]):
        def __len__(self) -> int:
            raise AssertionError("asked for its length")

        def __iter__(self) -> Any:
            raise AssertionError("read")

    assert image_variables({"x": Trap(), "y": Words(["a"])}) == []


def test_failing_subclass_is_not_listed() -> None:
    class Broken(Image.Image):
        @property
        def size(self) -> Any:
            raise OSError

    assert image_variables({"x": Broken(), "y": red()}) == image_variables({"y": red()})


def test_ten_thousand_names_and_huge_lists_are_scanned_quickly() -> None:
    namespace: dict[str, object] = {f"n{at}": at for at in range(10_000)}
    namespace["long"] = ["cat.png"] * 10_000_000
    namespace |= {f"path{at}": f"missing{at}.png" for at in range(10_000)}
    began = time.process_time()
    assert image_variables(namespace) == []
    assert time.process_time() - began < 1


def test_number_of_file_checks_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def is_file(path: Path) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr(Path, "is_file", is_file)
    image_variables({f"path{at}": f"{at}.png" for at in range(1_000)})
    assert len(asked) == MOST_STATS


def test_length_of_the_list_is_limited() -> None:
    image = red()
    assert len(image_variables({f"n{at}": image for at in range(1_000)})) == MOST_VARIABLES


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("receipt (1).jpg", "receipt_1"),
        ("C:\\photos\\My Cat.PNG", "My_Cat"),
        ("/home/x/2024-05-01.png", "image_2024_05_01"),
        ("class.png", "image_class"),
        ("list.png", "image_list"),
        ("exit", "image_exit"),
        ("__init__.png", "init"),
        (".png", "png"),
        ("", "image"),
        ("???", "image"),
        ("größe.jpg", "größe"),
        ("\ufb01g.png", "fig"),
        ("x\u00b2.png", "x2"),
        ("imgs[0]", "imgs_0"),
        ("photo.tar.gz", "photo_tar"),
    ],
)
def test_variable_name_is_derived_from_a_file_name(wanted: str, expected: str) -> None:
    assert free_name(wanted, {}, red()) == expected


def test_a_taken_name_gets_a_number_unless_it_is_the_value_itself() -> None:
    mine = red()
    assert free_name("cat.png", {"cat": 1}, mine) == "cat_2"
    assert free_name("cat.png", {"cat": 1, "cat_2": 2}, mine) == "cat_3"
    assert free_name("cat.png", {"cat": 1, "cat_2": mine}, mine) == "cat_2"
    assert free_name("cat.png", {"cat": mine}, mine) == "cat"


@given(st.text(), st.dictionaries(st.sampled_from(["image", "a", "a_2"]), st.just(1)))
def test_any_text_gives_a_valid_variable_name(wanted: str, namespace: dict[str, object]) -> None:
    name = free_name(wanted, namespace, red())
    assert check_name(name) == name
    assert name not in namespace
    assert not keyword.iskeyword(name)
    assert len(name) < 60


@pytest.mark.parametrize("name", ["answer", "größe", "_x", "x1", "match"])
def test_valid_name_is_kept(name: str) -> None:
    assert check_name(name) == name


def test_name_is_normalized_as_by_python() -> None:
    assert check_name("\ufb01g") == "fig"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "has no name"),
        ("  ", "has no name"),
        (
            "2x",
            r"^'2x' is not a variable name: use letters, digits and _, starting with a letter\.$",
        ),
        ("a b", "is not a variable name"),
        ("a\nb", "is not a variable name"),
        ("x[0]", "is not a variable name"),
        ("x" * 500 + "!", "is not a variable name"),
        ("class", r"^'class' is a Python keyword: use another name\.$"),
        ("list", r"^'list' is a name that Python itself uses: use another, such as list_1\.$"),
        ("In", r"^'In' is a name that IPython itself uses: use another, such as In_1\.$"),
        ("get_ipython", "IPython itself"),
        ("_", "such as answer"),
        ("__", "such as answer"),
        ("_3", "such as answer"),
        ("_i", "IPython itself"),
        ("_i12", "IPython itself"),
        ("_oh", "IPython itself"),
        ("__name__", "itself uses"),
    ],
)
def test_invalid_name_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        check_name(name)
    assert caught.value.option == "output"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 140


def test_value_of_a_name_is_described() -> None:
    namespace: dict[str, object] = {"x": [], "i": 3, "n": None, "r": red()}
    said = [describe_existing(name, namespace) for name in ("x", "i", "n", "r", "free")]
    assert said == ["x is a list", "i is an int", "n is None", "r is an Image", ""]


def test_a_class_with_a_strange_name_is_described_in_one_line() -> None:
    odd = type("a\n" * 100, (), {})()
    said = describe_existing("x", {"x": odd})
    assert "\n" not in said
    assert len(said) < 60
