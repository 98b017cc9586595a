"""Values that name or contain images are found in order; others are an error of one line."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_magic import formatting
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.result import VisionResult
from mlx_magic.errors import (
    FetchError,
    ImageDecodeError,
    ImageError,
    ImageNotFoundError,
    ImageTooLargeError,
)
from mlx_magic.images import limits
from mlx_magic.images.files import natural_key
from mlx_magic.images.opening import MAX_IMAGES, ImageInput, open_images


def png(colour: str = "red", size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def sources(value: Any, **options: Any) -> list[str]:
    return [image.source for image in open_images(value, **options)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a few files in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat2.png", "cat10.png", "cat1.png", "receipt.jpg", "a[1].png", "sub/deep.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png())
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "catfolder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize("make", [str, Path])
def test_paths_are_opened(folder: Path, make: Callable[[str], Any]) -> None:
    assert sources(make("cat1.png")) == ["cat1.png"]
    assert sources(make("sub/deep.png")) == ["sub/deep.png"]
    assert sources(make(str(folder / "cat1.png"))) == [formatting.short_label(f"{folder}/cat1.png")]


def test_relative_paths_start_from_base(folder: Path) -> None:
    assert sources("deep.png", base=folder / "sub") == ["deep.png"]
    assert sources("*.png", base=folder / "sub") == ["deep.png"]
    with pytest.raises(ImageNotFoundError, match=r"No file 'deep\.png'"):
        open_images("deep.png")


def test_tilde_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert len(open_images("~/cat1.png")) == 1
    assert len(open_images("~/cat*.png")) == 3


def test_glob_is_in_natural_order_and_skips_folders(folder: Path) -> None:
    assert sources("cat*.png") == ["cat1.png", "cat2.png", "cat10.png"]
    assert sources("**/deep.png") == ["sub/deep.png"]
    assert len(open_images(str(folder / "cat?.png"))) == 2


def test_wildcard_characters_in_the_base_folder_are_literal(folder: Path) -> None:
    odd = folder / "x[12]*"
    odd.mkdir()
    (odd / "one.png").write_bytes(png())
    assert sources("*.png", base=odd) == ["one.png"]


def test_existing_file_takes_precedence_over_a_glob(folder: Path) -> None:
    (folder / "a1.png").write_bytes(png())
    assert sources("a[1].png") == ["a[1].png"]


def test_natural_order_sorts_by_number_and_letter() -> None:
    names = ["b1", "a10", "A2", "a1", "1", "10", "2"]
    expected = ["1", "2", "10", "a1", "A2", "a10", "b1"]
    assert sorted(names, key=natural_key) == sorted(expected, key=expected.index)


def test_error_for_a_missing_file_names_its_folder_and_a_suggestion(folder: Path) -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        open_images("recept.jpg")
    shown = formatting.short_label(str(folder))
    assert str(caught.value) == (f"No file 'recept.jpg' in {shown}; did you mean 'receipt.jpg'?")
    assert caught.value.source == "recept.jpg"
    with pytest.raises(ImageNotFoundError, match=r"did you mean 'receipt\.jpg'"):
        open_images(Path("RECEIPT.JPEG"))
    with pytest.raises(ImageNotFoundError, match=r"No file 'zzzz' in [^;]*\.$"):
        open_images("zzzz")
    with pytest.raises(ImageNotFoundError, match=r"'no/such\.png': there is no folder"):
        open_images("no/such.png")


def test_error_for_a_glob_without_matches_names_the_folder(folder: Path) -> None:
    with pytest.raises(ImageNotFoundError, match=r"No file matches 'dog\*.png' in "):
        open_images("dog*.png")


def test_error_for_a_folder_suggests_a_glob(folder: Path) -> None:
    with pytest.raises(ImageError, match=r"sub is a folder: .*'sub/\*\.png'"):
        open_images("sub")


def test_glob_of_too_many_files_is_refused(folder: Path) -> None:
    for index in range(MAX_IMAGES + 1):
        (folder / f"many{index}.png").touch()
    with pytest.raises(ImageError, match=f"matches {MAX_IMAGES + 1} files: at most {MAX_IMAGES}"):
        open_images("many*.png")


def test_text_file_is_refused(folder: Path) -> None:
    with pytest.raises(ImageDecodeError) as caught:
        open_images("notes.txt")
    assert str(caught.value) == "notes.txt is a text file, not an image."


def test_pipe_is_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ImageError, match=r"pipe\.png is not a regular file"):
        open_images("pipe.png")


def test_file_over_the_limit_is_not_read(folder: Path) -> None:
    with (folder / "huge.png").open("wb") as file:
        file.truncate(limits.MAX_FILE_BYTES * 3)  # takes no room on the disk
    with pytest.raises(ImageTooLargeError, match=r"huge\.png has 600 MB; the limit is 200 MB"):
        open_images("huge.png")


@pytest.mark.parametrize("text", ["a\0b.png", "x" * 5000, "", "  ", "a\nb.png", "~nobody-here/x"])
def test_invalid_paths_are_an_error_of_one_line(folder: Path, text: str) -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        open_images(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40).filter(lambda text: "://" not in text))
def test_any_text_raises_only_image_errors(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_images(text, base=Path("no-such-folder-anywhere"))
    assert len(str(caught.value).splitlines()) == 1


def test_data_uris_are_decoded() -> None:
    body = base64.b64encode(png()).decode()
    (image,) = open_images(f"data:image/png;base64,{body}")
    assert image.size == (4, 3)
    assert image.source.startswith("data URI (")
    wrapped = "\n".join(body[at : at + 20] for at in range(0, len(body), 20)).rstrip("=")
    assert len(open_images(f"DATA:;base64,{wrapped}")) == 1
    quoted = "".join(f"%{byte:02x}" for byte in png())
    assert len(open_images(f"data:image/png,{quoted}")) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,####", "damaged base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,aGVsbG8=", "is a text file"),
    ],
)
def test_invalid_data_uris_are_refused(text: str, words: str) -> None:
    with pytest.raises(ImageDecodeError, match=rf"data URI \(.*\) {words}|holds {words}"):
        open_images(text)


def test_bytes_bytearray_and_memoryview_are_decoded() -> None:
    for value in (png(), bytearray(png()), memoryview(png())):
        assert sources(value)[0].startswith("bytes (")
        assert sources(value, name="blob") == ["blob"]


def test_open_files_are_read_from_the_start_and_keep_their_position(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "PNG")
    at = buffer.tell()
    assert len(open_images(buffer, name="buffer")) == 1
    assert buffer.tell() == at
    with Path("cat1.png").open("rb") as file:
        assert len(open_images(file)) == 1


def test_unreadable_files_are_an_image_error(folder: Path) -> None:
    closed = io.BytesIO(png())
    closed.close()
    with Path("notes.txt").open() as text, pytest.raises(ImageDecodeError, match="'rb'"):
        open_images(text, name="file")
    with pytest.raises(ImageDecodeError, match=r"^file is closed: open it again"):
        open_images(closed, name="file")
    view = memoryview(bytearray(png()))
    view.release()
    with pytest.raises(ImageDecodeError, match=r"^view was released"):
        open_images(view, name="view")
    with pytest.raises(ImageDecodeError, match="not an image"):
        open_images(io.BytesIO)


@pytest.mark.parametrize("name", ["a\ud800.png", "*\udfff*", "~/\udbff", "a\0.png"])
def test_name_that_no_file_can_have_says_why(name: str) -> None:
    why = "a zero byte" if "\0" in name else "half of a surrogate pair"
    with pytest.raises(ImageNotFoundError, match=f"has .*{why}.* at position .: no file has such"):
        open_images(name)
    with pytest.raises(ImageDecodeError, match="half of a surrogate pair: copy it again"):
        open_images("data:image/png;base64,\ud800")


def test_nested_lists_keep_their_order(folder: Path) -> None:
    value = ["cat2.png", (Image.new("RGB", (1, 1)), ["sub/*.png"]), np.zeros((2, 2))]
    assert sources(value, name="pics") == ["cat2.png", "pics[1][0]", "sub/deep.png", "pics[2]"]
    assert sources(Path("sub").glob("*.png")) == ["sub/deep.png"]
    assert sources(np.array(["cat1.png", "cat2.png"])) == ["cat1.png", "cat2.png"]


def test_empty_and_recursive_lists_are_refused() -> None:
    with pytest.raises(ImageError, match="pics is empty: there is no image in it"):
        open_images([], name="pics")
    with pytest.raises(ImageError, match="is empty"):
        open_images([[], ()])
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ImageError, match="nested too deep"):
        open_images(loop)


def test_vision_result_gives_its_images() -> None:
    first, second = open_images([png("red"), png("blue")])
    result = VisionResult("text", "model", "stop", images=(first, second))
    assert open_images(result) == [first, second]
    assert open_images([result, first]) == [first, second, first]
    empty = VisionResult("text", "model", "stop")
    with pytest.raises(ImageError, match="answer is an answer to a question without images"):
        open_images(empty, name="answer")


def test_pandas_column_gives_its_images(folder: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"photo": ["cat1.png", "cat2.png"], "n": [1, 2]}, index=["a", "b"])
    assert sources(frame["photo"], name='df["photo"]') == ["cat1.png", "cat2.png"]
    blobs = pd.Series([png(), Image.new("RGB", (1, 1))], index=["a", "b"])
    assert sources(blobs, name="s") == ["s['a']", "s['b']"]
    for missing in (None, float("nan"), pd.NA, pd.NaT):
        frame["photo"] = pd.Series(["cat1.png", missing], index=["a", "b"], dtype=object)
        with pytest.raises(ImageError, match=r"s has no value at index 'b': .*\.dropna"):
            open_images(frame["photo"], name="s")
    with pytest.raises(ImageDecodeError, match=r'df is a whole DataFrame: .*df\["column"\]'):
        open_images(frame, name="df")
    with pytest.raises(ImageDecodeError, match=r"s\[0\] is of type int, not an image"):
        open_images(pd.Series([1, 2]), name="s")


def test_matplotlib_figures_and_axes_are_rendered() -> None:
    pytest.importorskip("matplotlib").use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1), dpi=50)
    axes = figure.subplots()
    (line,) = axes.plot([1, 2])
    canvas, dpi, open_figures = figure.canvas, figure.dpi, plt.get_fignums()
    (whole,) = open_images(figure, name="fig")
    # Cut around what is drawn, as in a notebook.
    assert abs(whole.size[0] - 100) < 20
    assert abs(whole.size[1] - 50) < 20
    assert whole.source == "fig"
    assert np.asarray(whole.pixels).std() > 0
    for part in (axes, line):
        assert open_images(part)[0].digest == whole.digest
    assert figure.canvas is canvas
    assert (figure.dpi, plt.get_fignums()) == (dpi, open_figures)
    with pytest.raises(ImageTooLargeError, match="fig is 10000x10000"):
        open_images(Figure(figsize=(100, 100), dpi=100), name="fig")
    axes.set_title("$\\broken$")
    with pytest.raises(ImageDecodeError, match="fig cannot be drawn"):
        open_images(figure, name="fig")


def test_objects_with_repr_png_are_images() -> None:
    class Shows:
        def __init__(self, shown: Any) -> None:
            self.shown = shown

        def _repr_png_(self) -> Any:
            return self.shown

    class Raises:
        def _repr_jpeg_(self) -> Any:
            raise ZeroDivisionError("oh\nno")

    encoded = base64.b64encode(png()).decode()
    for shown in (png(), encoded, (png(), {"width": 4})):
        assert sources(Shows(shown), name="x") == ["x"]
    useless: tuple[Any, ...] = (None, "###", 5)
    for nothing in useless:
        with pytest.raises(ImageDecodeError, match="x has no PNG or JPEG"):
            open_images(Shows(nothing), name="x")
    with pytest.raises(ImageDecodeError, match=r"x failed to make a PNG or JPEG: oh\?no"):
        open_images(Raises(), name="x")


class Fetched:
    """Gives one image for every URL, and remembers them."""

    def __init__(self) -> None:
        self.urls: list[str] = []

    def __call__(self, url: str, *, cancel: CancelToken | None = None) -> bytes:
        """Return a red PNG."""
        self.urls.append(url)
        return png()


def test_ipython_image_is_accepted(folder: Path) -> None:
    display = pytest.importorskip("IPython.display")
    fetch = Fetched()
    images = [
        display.Image(filename="cat1.png"),
        display.Image(data=png()),
        display.Image(url="https://example.org/a.png"),
    ]
    assert [image.size for image in open_images(images, fetch=fetch)] == [(4, 3)] * 3
    assert fetch.urls == ["https://example.org/a.png"]


def test_urls_are_fetched_and_named() -> None:
    fetch = Fetched()
    long = "HTTPS://example.org/" + "x" * 100 + ".png"
    images = open_images(["http://example.org/a.png", long], fetch=fetch)
    assert fetch.urls == ["http://example.org/a.png", long]
    assert images[0].source == "http://example.org/a.png"
    assert len(images[1].source) == 80


def test_only_urls_are_fetched(folder: Path) -> None:
    fetch = Fetched()
    open_images(["cat1.png", png(), np.zeros((2, 2))], fetch=fetch)
    for text in ("file:///etc/passwd", "ftp://example.org/a.png", "s3://bucket/a.png"):
        with pytest.raises(FetchError, match="only http and https addresses are fetched"):
            open_images(text, fetch=fetch)
    assert fetch.urls == []


def test_all_sources_are_resolved_before_any_is_fetched() -> None:
    fetch = Fetched()
    with pytest.raises(ImageDecodeError):
        open_images(["http://example.org/a.png", 5], fetch=fetch)
    assert fetch.urls == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, r"^x is of type int, not an image: use a path, glob, URL"),
        (None, "x is of type NoneType, not an image"),
        (np.int64(3), "x is of type int64, not an image"),
        ({"a": 3}, r"x is a dictionary: give one of its values, or list\(d.values\(\)\)"),
        ({"a.png"}, r"x is a set, which has no order: give sorted\(x\)"),
        (object(), "x is of type object, not an image"),
        (Image, "x is of type module, not an image"),
        ([[0, 255]], r"x\[0\]\[0\] is of type int, not an image"),
    ],
)
def test_error_for_a_value_that_is_not_an_image_is_one_line(value: Any, words: str) -> None:
    with pytest.raises(ImageDecodeError, match=words) as caught:
        open_images(value, name="x")
    assert "\n" not in str(caught.value)


def test_image_without_a_name_is_named_by_its_type() -> None:
    assert sources(Image.new("RGB", (1, 1))) == ["PIL image"]
    assert sources(np.zeros((2, 2))) == ["NumPy array"]
    assert sources([np.zeros((2, 2))]) == ["list[0]"]
    with pytest.raises(ImageDecodeError, match=r"^int is not an image"):
        open_images(5)


def test_image_names_are_one_line() -> None:
    (image,) = open_images(png(), name="first\nsecond\u202e")
    assert isinstance(image, ImageInput)
    assert image.source == "first?second?"


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: (data, {"width": 3})])
@pytest.mark.parametrize("mime", ["image/png", "image/jpeg"])
def test_object_with_a_mimebundle_gives_the_image_that_a_notebook_shows(
    wrap: Any, mime: str
) -> None:
    class Chart:
        def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
            return wrap({mime: base64.b64encode(png()).decode(), "text/plain": "chart"})

    assert open_images(Chart())[0].digest == open_images(png())[0].digest


def test_object_whose_mimebundle_has_no_image_or_fails_is_refused() -> None:
    class Page:
        def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
            return {"text/html": "<b>x</b>"}

    class Broken:
        def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
            raise ValueError("no renderer")

    with pytest.raises(ImageDecodeError, match="not an image"):
        open_images(Page(), name="x")
    with pytest.raises(ImageDecodeError, match="x failed to make a PNG or JPEG: no renderer"):
        open_images(Broken(), name="x")
