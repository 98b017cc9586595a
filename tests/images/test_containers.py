"""Columns, records, figures and pasted text are images, as their libraries really make them."""

from __future__ import annotations

import base64
import io
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_magic.errors import ImageDecodeError, ImageError, ImageNotFoundError
from mlx_magic.images.opening import open_images


def png(color: Any = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(buffer, "PNG")
    return buffer.getvalue()


def colors(value: Any, **options: Any) -> list[Any]:
    return [image.pixels.getpixel((0, 0)) for image in open_images(value, **options)]


RED, BLUE = (255, 0, 0), (0, 0, 255)


def dataset() -> Any:
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": png(), "path": "a.png"}, {"bytes": png("blue"), "path": None}],
        "label": [0, 1],
    }
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def test_column_of_a_hugging_face_dataset_gives_its_images() -> None:
    data = dataset()
    assert colors(data["image"]) == [RED, BLUE]
    assert colors(data["image"][1:]) == [BLUE]
    assert colors(data[0]) == [RED]


def test_undecoded_images_of_a_dataset_are_images() -> None:
    datasets = pytest.importorskip("datasets")
    raw = dataset().cast_column("image", datasets.Image(decode=False))
    assert colors(raw["image"]) == [RED, BLUE]
    assert open_images(raw[0], name="row")[0].source == "a.png"


def test_whole_dataset_is_refused_with_its_column() -> None:
    datasets = pytest.importorskip("datasets")
    data = dataset().remove_columns("label")
    with pytest.raises(ImageDecodeError, match=r'ds is a whole dataset: .*\["image"\]'):
        open_images(data, name="ds")
    with pytest.raises(ImageDecodeError, match=r'ds\["train"\]\["image"\]'):
        open_images(datasets.DatasetDict({"train": data}), name="ds")


def test_column_of_polars_gives_its_images(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    path = tmp_path / "a.png"
    path.write_bytes(png())
    for values in ([png(), png("blue")], [{"bytes": png(), "path": ""}, {"bytes": png("blue")}]):
        assert colors(polars.Series("image", values)) == [RED, BLUE]
    assert colors(polars.Series([str(path)])) == [RED]
    with pytest.raises(ImageError, match=r"s has no value at index 1: .*drop_nulls"):
        open_images(polars.Series([png(), None]), name="s")
    with pytest.raises(ImageDecodeError, match=r'df is a whole DataFrame: .*df\["image"\]'):
        open_images(polars.DataFrame({"image": [png()]}), name="df")


def test_column_of_pyarrow_gives_its_images() -> None:
    pa = pytest.importorskip("pyarrow")
    assert colors(pa.array([png(), png("blue")])) == [RED, BLUE]
    assert colors(pa.chunked_array([[png()], [png("blue")]])) == [RED, BLUE]
    assert colors(pa.array([{"bytes": png(), "path": None}])) == [RED]
    assert colors(pa.scalar(png())) == [RED]
    assert colors(pa.py_buffer(png())) == [RED]
    with pytest.raises(ImageError, match="has no value at index 1"):
        open_images(pa.array([png(), None]))
    with pytest.raises(ImageDecodeError, match=r't is a whole table: .*df\["image"\]'):
        open_images(pa.table({"image": [png()]}), name="t")


def test_records_in_a_pandas_column_are_images() -> None:
    pd = pytest.importorskip("pandas")
    rows = pd.Series([{"bytes": png(), "path": "q.png"}, {"bytes": png("blue"), "path": None}])
    assert colors(rows) == [RED, BLUE]
    assert open_images(rows)[0].source == "q.png"


def test_libraries_of_columns_are_not_imported() -> None:
    before = set(sys.modules)
    open_images([png(), {"bytes": png()}, np.zeros((3, 3), np.uint8)])
    assert not {"polars", "pyarrow", "datasets", "pandas"} & (set(sys.modules) - before)


def test_value_of_a_file_upload_gives_its_images() -> None:
    widgets = pytest.importorskip("ipywidgets")
    upload = widgets.FileUpload(multiple=True)
    upload.value = [
        {
            "name": name,
            "type": "image/png",
            "size": 75,
            "content": memoryview(png(color)),
            "last_modified": upload_time(),
        }
        for name, color in (("a.png", "red"), ("b.png", "blue"))
    ]
    for value in (upload.value, upload):
        assert colors(value) == [RED, BLUE]
        assert [image.source for image in open_images(value)] == ["a.png", "b.png"]
    assert colors({"old.png": {"metadata": {}, "content": png()}}) == [RED]


def upload_time() -> Any:
    import datetime

    return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def test_dictionary_with_one_image_is_a_record() -> None:
    assert colors({"id": 7, "scan": png()}) == [RED]
    assert colors({"id": 7, "scan": Image.new("RGB", (1, 1), RED)}) == [RED]
    with pytest.raises(ImageError, match=r"x is a dictionary with 2 images: .*'a', 'b'"):
        open_images({"a": png(), "b": png("blue")}, name="x")
    assert open_images({"image": png()})[0].size == open_images(png())[0].size
    with pytest.raises(ImageDecodeError, match="x is a dictionary: give one of its values"):
        open_images({"a": 1, "b": 2}, name="x")


@pytest.fixture
def plot() -> Iterator[Any]:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    yield pyplot
    pyplot.close("all")


@pytest.fixture
def inline() -> Iterator[Any]:
    config = pytest.importorskip("matplotlib_inline.config")
    yield config.InlineBackend.instance()
    config.InlineBackend.clear_instance()


def drawn(plot: Any) -> tuple[Any, Any]:
    figure, axes = plot.subplots(2, 2, figsize=(3, 2), dpi=50)
    axes[0, 0].plot([1, 2], label="a line far outside")
    axes[0, 0].legend(bbox_to_anchor=(4, 1))
    figure.set_facecolor("lightyellow")
    return figure, axes


# Of traitlets, for the way in which matplotlib-inline observes its settings.
ignores_traitlets = pytest.mark.filterwarnings("ignore:InlineBackend:DeprecationWarning")


@ignores_traitlets
@pytest.mark.parametrize(
    ("formats", "kwargs"),
    [
        ({"png"}, {"bbox_inches": "tight"}),
        ({"png"}, {"bbox_inches": None}),
        ({"png"}, {"bbox_inches": "tight", "facecolor": "red", "pad_inches": 1}),
        ({"retina"}, {"bbox_inches": "tight"}),
    ],
)
def test_figure_is_what_the_notebook_shows(
    plot: Any, inline: Any, formats: set[str], kwargs: dict[str, Any]
) -> None:
    from IPython.core.pylabtools import print_figure

    inline.figure_formats, inline.print_figure_kwargs = formats, kwargs
    figure, _ = drawn(plot)
    (image,) = open_images(figure)
    shown = print_figure(figure, fmt=next(iter(formats)), **kwargs)
    expected = Image.open(io.BytesIO(shown)).convert("RGB")
    assert (image.size, image.pixels.tobytes()) == (expected.size, expected.tobytes())


def test_legend_outside_of_the_axes_is_in_the_image(plot: Any) -> None:
    figure, axes = drawn(plot)
    wide = open_images(figure)[0].size[0]
    axes[0, 0].get_legend().remove()
    assert wide > open_images(figure)[0].size[0] + 20


@ignores_traitlets
def test_settings_of_another_figure_format_do_not_break_the_image(plot: Any, inline: Any) -> None:
    inline.figure_formats = {"svg"}
    inline.print_figure_kwargs = {"bbox_inches": "tight", "metadata": {"Date": None}}
    assert len(open_images(drawn(plot)[0])) == 1


def test_axes_are_their_figure_once(plot: Any) -> None:
    figure, axes = drawn(plot)
    (whole,) = open_images(figure)
    values: list[Any] = [axes, axes[0], list(axes.flat), tuple(axes.flat), axes[1, 1]]
    values.append({"left": axes[0, 0], "right": axes[0, 1]})
    for value in values:
        assert [image.digest for image in open_images(value, name="x")] == [whole.digest]
        assert open_images(value, name="x")[0].source == "x"
    other = plot.figure(figsize=(1, 1)).add_subplot()
    assert len(open_images([*axes.flat, other])) == 2


def test_empty_figure_is_refused(plot: Any) -> None:
    with pytest.raises(ImageDecodeError, match="fig is an empty figure"):
        open_images(plot.figure(), name="fig")


def test_figure_that_is_drawn_far_outside_is_refused_before_it_is_drawn(plot: Any) -> None:
    figure, axes = drawn(plot)
    axes[0, 0].text(1e5, 1e5, "far")
    with pytest.raises(ImageError, match="the limit is 64"):
        open_images(figure)


TEXT = base64.b64encode(png()).decode()
PASTED: list[Callable[[str], str]] = [
    lambda text: text,
    lambda text: f"data:image/png;base64,{text}",
    lambda text: "\n".join(text[at : at + 20] for at in range(0, len(text), 20)),
    lambda text: f"\n  {text}\n",
    lambda text: text.rstrip("="),
    lambda text: text.replace("+", "-").replace("/", "_"),
    lambda text: text.replace("/", "\\/"),
    lambda text: f'"{text}"',
    lambda text: f"'{text}'",
    lambda text: f"b'{text}'",
]
AROUND: list[Callable[[str], str]] = [
    lambda text: text,
    lambda text: f'<img src="{text}" width=3>',
    lambda text: f"![alt]({text})",
    lambda text: f"url({text})",
    lambda text: f'{{"url": "{text}"}}',
]


@given(st.lists(st.sampled_from(PASTED), max_size=3))
def test_pasted_base64_is_read(ways: list[Callable[[str], str]]) -> None:
    text = TEXT
    for way in ways:
        if way is PASTED[1] and not (text.startswith("iVBOR")):
            continue
        text = way(text)
    assert colors(text) == [RED]


@given(st.sampled_from(PASTED[:1] + PASTED[2:6]), st.sampled_from(AROUND))
def test_pasted_data_uri_is_read(inside: Callable[[str], str], around: Any) -> None:
    (image,) = open_images(around(f"data:image/png;base64,{inside(TEXT)}"))
    assert image.source.startswith("data URI (")


@settings(max_examples=60)
@given(st.binary(min_size=300, max_size=400).map(lambda data: b"%PDF-1.4" + data))
def test_base64_of_something_else_is_named(data: bytes) -> None:
    with pytest.raises(ImageError, match="looks like base64, but what it holds is a PDF document"):
        open_images(base64.b64encode(data).decode())


def test_cut_off_base64_is_refused() -> None:
    cut = TEXT.rstrip("=")
    with pytest.raises(ImageDecodeError, match="damaged base64: its end is missing"):
        open_images(cut[: len(cut) // 4 * 4 - 3])


SPACES = " \u00a0\u1680\u2002\u2009\u202f\u205f\u3000"


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet=SPACES + "éüñ" + "ab3.", min_size=1, max_size=12),
    st.lists(st.sampled_from(SPACES), min_size=12, max_size=12),
    st.sampled_from(["NFC", "NFD"]),
    st.booleans(),
)
def test_typed_names_find_files_that_look_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    stem: str,
    spaces: list[str],
    form: Any,
    as_glob: bool,
) -> None:
    folder = tmp_path_factory.mktemp("names")
    name = f"x{stem}y.png"
    (folder / name).write_bytes(png())
    other = iter(spaces)
    typed = "".join(next(other) if char in SPACES else char for char in name)
    typed = unicodedata.normalize(form, typed)
    assert colors(typed, base=folder) == [RED]
    if as_glob:
        assert colors(typed.replace(".png", ".*"), base=folder) == [RED]
    nested = folder / typed
    if not nested.exists():
        nested.mkdir()
        (nested / "in.png").write_bytes(png("blue"))
        assert colors(f"{typed}/in.png", base=folder) == [BLUE]


def test_names_that_look_the_same_are_told_apart(tmp_path: Path) -> None:
    for space in "\u00a0\u2009":
        (tmp_path / f"two{space}a.png").write_bytes(png())
    with pytest.raises(ImageNotFoundError) as caught:
        open_images("two a.png", base=tmp_path)
    assert str(caught.value) == (
        "'two a.png' looks like 2 files, and is none of them exactly: in one of them character 4 "
        "is U+00A0 NO-BREAK SPACE, not U+2009 THIN SPACE. Use a glob or Tab to choose."
    )
    assert colors("two\u2009a.png", base=tmp_path) == [RED]
    assert len(open_images("two a.*", base=tmp_path)) == 2


def test_name_in_another_alphabet_shows_where_it_differs(tmp_path: Path) -> None:
    (tmp_path / "p\u0430per.png").write_bytes(png())
    with pytest.raises(ImageNotFoundError) as caught:
        open_images("paper.png", base=tmp_path)
    assert str(caught.value).endswith(
        "Its character 2 is U+0430 CYRILLIC SMALL LETTER A, not U+0061 LATIN SMALL LETTER A."
    )
