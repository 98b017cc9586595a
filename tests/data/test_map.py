"""`mlx_magic.map` with a scripted model: sources, rows, tables, errors, Cancel."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mlx_magic
from mlx_magic import MapProgress, MapResult
from mlx_magic.data.mapping import openers
from mlx_magic.errors import GenerationError, ImageError, RequestError
from mlx_magic.testing import ScriptedBackend

Draw = Callable[..., Path]


@dataclass
class Receipt:
    shop: str
    total: float


def sources(result: MapResult) -> list[str]:
    return [row.image.source for row in result]


def prompts(script: ScriptedBackend) -> list[str]:
    return sorted(request.prompt for request in script.requests)


def test_folder_is_read_recursively_in_natural_order(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    draw(11)
    draw(1, "images/deeper")
    (Path("images") / "notes.txt").write_text("no image")
    (Path("images") / ".hidden.png").write_text("no image")
    result = mlx_magic.map("What?", "images", model)
    names = [*(f"images/{at}.png" for at in range(11)), "images/deeper/0.png"]
    assert sources(result) == names
    assert result.notes == ["images: left out 1 file without an image's suffix"]
    assert result.frame["text"].tolist() == ["One two."] * 12
    assert sources(mlx_magic.map("What?", "images/1*.png", model)) == [names[1], names[10]]
    assert all(len(request.images) == 1 for request in script.requests)


def test_image_that_cannot_be_read_is_a_row_with_an_error(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    folder = draw(4)
    (folder / "2.png").write_text("not an image")
    result = mlx_magic.map("What?", folder, model)
    assert [row.error is None for row in result] == [True, True, False, True]
    assert isinstance(result[2].error, ImageError)
    assert "2.png is a text file" in result.frame["error"][2]
    assert result.frame["text"].isna().tolist() == [False, False, True, False]
    assert result.runs["finish_reason"].tolist() == ["stop", "stop", None, "stop"]
    with pytest.raises(ImageError, match=r"2\.png"):
        mlx_magic.map("What?", folder, model, errors="raise")


def test_answers_of_a_map_follow_a_schema_and_are_restored(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    script.pieces = ['{"shop": "A", ', '"total": 2.5}']
    schema = "shop: str, total: float"
    first = mlx_magic.map("What?", draw(2), model, schema=schema)
    assert first.frame[["shop", "total"]].to_numpy().tolist() == [["A", 2.5]] * 2
    assert [request.schema is not None for request in script.requests] == [True, True]
    again = mlx_magic.map("What?", draw(2), model, schema=Receipt)
    assert len(script.requests) == 4
    assert [row.result and row.result.data for row in again] == [Receipt("A", 2.5)] * 2
    restored = mlx_magic.map("What?", draw(2), model, schema=Receipt)
    assert len(script.requests) == 4
    assert [row.result and row.result.data for row in restored] == [Receipt("A", 2.5)] * 2
    assert restored.frame["total"].tolist() == [2.5, 2.5]
    with pytest.raises(RequestError, match="schema"):
        mlx_magic.map("What?", draw(2), model, schema=3)


def test_failure_of_one_answer_does_not_end_the_map(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    script.error = GenerationError("The model failed.", model="m")
    result = mlx_magic.map("What?", draw(3), model)
    assert [str(row.error) for row in result] == ["The model failed."] * 3
    script.error = None
    # Errors are tried again.
    assert [row.error for row in mlx_magic.map("What?", draw(3), model)] == [None] * 3


def test_model_that_does_not_exist_ends_the_map(script: ScriptedBackend, draw: Draw) -> None:
    with pytest.raises(mlx_magic.errors.ModelNotFoundError):
        mlx_magic.map("What?", draw(3), "no/such-model-folder/here")
    assert not Path("no").exists()


KINDS: dict[str, Callable[[list[str]], Any]] = {
    "pandas": lambda paths: pd.Series(paths, index=pd.Index(["a", "b", "c"], name="key")),
    "polars": lambda paths: pl.Series("file", paths),
    "pyarrow": pa.array,
    "list": list,
    "paths": lambda paths: [Path(path) for path in paths],
    "folders": lambda paths: [Path(paths[0]).parent],
    "tuple": tuple,
    "bytes": lambda paths: [Path(path).read_bytes() for path in paths],
    "images": lambda paths: [Image.new("RGB", (5, 5), (at, 0, 0)) for at in range(3)],
    "frames": lambda paths: np.arange(3 * 4 * 6 * 3, dtype=np.uint8).reshape(3, 4, 6, 3),
    "generator": lambda paths: (Path(path) for path in paths),
    "csv": lambda paths: "rows.csv#file",
    "parquet": lambda paths: "rows.parquet#file",
    "records": lambda paths: [{"path": path, "n": at} for at, path in enumerate(paths)],
    "table": lambda paths: (pd.DataFrame({"file": paths, "n": [0, 1, 2]}), "file"),
    "polars table": lambda paths: (pl.DataFrame({"file": paths, "n": [0, 1, 2]}), "file"),
    "pyarrow table": lambda paths: (pa.table({"file": paths, "n": [0, 1, 2]}), "file"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source(kind: str, script: ScriptedBackend, model: Path, draw: Draw) -> None:
    folder = draw(3)
    table = pd.DataFrame({"file": [f"images/{at}.png" for at in range(3)], "n": [0, 1, 2]})
    table.to_csv("rows.csv", index=False)
    pq.write_table(pa.Table.from_pandas(table), "rows.parquet")
    images = KINDS[kind]([str(folder / f"{at}.png") for at in range(3)])
    result = mlx_magic.map("What?", images, model, journal=False)
    assert [row.error for row in result] == [None] * 3
    index = ["a", "b", "c"] if kind == "pandas" else [0, 1, 2]
    assert [row.index for row in result] == index
    frame = result.frame
    assert frame.index.tolist() == result.runs.index.tolist() == index
    assert frame.index.name == ("key" if kind == "pandas" else None)
    assert frame["text"].tolist() == ["One two."] * 3
    assert len({row.image.digest for row in result}) == 3


def test_dataset_column_and_its_other_columns(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    datasets = pytest.importorskip("datasets")
    folder = draw(2)
    images = [str(folder / f"{at}.png") for at in range(2)]
    dataset = datasets.Dataset.from_dict({"image": images, "n": [7, 8]}).cast_column(
        "image", datasets.Image()
    )
    result = mlx_magic.map("Is it {n}?", dataset["image"], model)
    assert [row.error for row in result] == [None, None]
    assert prompts(script) == ["Is it 7?", "Is it 8?"]
    with pytest.raises(RequestError, match=r"give it with its column of images"):
        mlx_magic.map("What?", dataset, model)


def test_multi_index_is_kept(script: ScriptedBackend, model: Path, draw: Draw) -> None:
    folder = draw(2)
    index = pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["letter", "number"])
    column = pd.Series([folder / "0.png", None], index=index)
    frame = mlx_magic.map("What?", column, model).frame
    assert frame.index.equals(index)
    assert frame["error"].tolist()[0] is None
    assert "has no value" in frame["error"].tolist()[1]


def test_columns_fill_the_prompt(script: ScriptedBackend, model: Path, draw: Draw) -> None:
    folder = draw(3)
    table = pd.DataFrame(
        {"file": [str(folder / f"{at}.png") for at in range(3)], "n": [1.5, np.nan, 3.0],
         "unit price": ["a", "b", "c"]}
    )  # fmt: skip
    result = mlx_magic.map("{n} {unit price} {{n}} {'a': 1}", (table, "file"), model)
    assert prompts(script) == ["1.5 a {n} {'a': 1}", "3.0 c {n} {'a': 1}"]
    assert str(result[1].error) == "This row has no value in the column n."
    with pytest.raises(RequestError, match=r"\{file2\} is not a column: did you mean \{file\}\?"):
        mlx_magic.map("{file2}", (table, "file"), model)
    # Without columns braces stay as they are written.
    mlx_magic.map("{n}", folder, model, limit=1)
    assert "{n}" in prompts(script)


def test_several_questions_and_models_make_long_rows(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    questions = {"color": "Which color?", "shape": "Which shape?"}
    result = mlx_magic.map(questions, draw(2), [model, str(model) + "/"])
    frame = result.frame
    assert list(frame.columns) == ["image", "model", "question", "text", "confidence", "error"]
    assert frame.index.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert frame["question"].tolist() == ["color", "shape"] * 4
    assert frame["model"].tolist() == [str(model), str(model), f"{model}/", f"{model}/"] * 2
    # A dictionary and a list have their columns even with one entry.
    frame = mlx_magic.map({"a": "What?"}, draw(1), [model]).frame
    assert {"model", "question"} <= set(frame.columns)


def test_json_answers_become_columns(script: ScriptedBackend, model: Path, draw: Draw) -> None:
    script.pieces = ['{"total": 3, "image": "x", "shop": {"name": "A", "tags": [1]}}']
    frame = mlx_magic.map("What?", draw(2), model, format="json").frame
    expected = ["image", "total", "image_", "shop.name", "shop.tags", "confidence", "error"]
    assert list(frame.columns) == expected
    assert frame["shop.tags"][0] == [1]
    # The stored answers are the same, although they were parsed.
    again = mlx_magic.map("What?", draw(2), model, format="json")
    assert all(row.reused for row in again)
    assert again.frame.equals(frame)
    assert mlx_magic.map("What?", draw(2), model).frame["text"].tolist() == [script.pieces[0]] * 2


def test_rows_arrive_in_order_while_the_map_runs(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    script.hold = "prefill"
    result = mlx_magic.map("What?", draw(30), model, wait=False)
    assert "running" in repr(result)
    assert result.frame.empty
    script.release()
    assert [row.index for row in result] == list(range(30))
    assert result.done
    assert len(result) == 30
    assert result[-1].index == 29
    assert [row.index for row in result[3:5]] == [3, 4]


def test_cancel_keeps_the_rows_that_were_answered(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    answered = threading.Event()
    held = threading.Event()

    def progress(state: MapProgress) -> None:
        if state.done >= 5:
            answered.set()
            held.wait(10)

    result = mlx_magic.map("What?", draw(200), model, wait=False, on_progress=progress)
    assert answered.wait(30)
    result.cancel()
    held.set()
    rows = list(result.wait())
    assert 5 <= len(rows) < 200
    assert all(row.result is not None and row.result.finish_reason == "stop" for row in rows)


def test_cancel_of_everything_ends_a_map(script: ScriptedBackend, model: Path, draw: Draw) -> None:
    from mlx_magic import default_session

    script.hold = "decode"
    result = mlx_magic.map("What?", draw(5), model, wait=False, max_tokens=10**6)
    assert default_session.current().cancel() >= 1
    assert list(result.wait()) == []


def test_generator_is_pulled_on_the_calling_thread_with_a_bounded_look_ahead(
    script: ScriptedBackend, model: Path
) -> None:
    threads = set()
    buffer = np.zeros((4, 6, 3), np.uint8)
    pulled = 0
    ahead = []

    def frames() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal pulled
        for at in range(100):
            threads.add(threading.current_thread())
            pulled += 1
            ahead.append(pulled - len(script.requests))
            buffer.fill(at)
            yield buffer

    result = mlx_magic.map("What?", frames(), model)
    assert threads == {threading.current_thread()}
    assert len({row.image.digest for row in result}) == 100
    assert max(ahead) <= 80
    assert result.frame["error"].isna().all()
    with pytest.raises(RequestError, match="wait=False needs a list"):
        mlx_magic.map("What?", frames(), model, wait=False)


def test_error_of_a_generator_is_raised_in_one_line(script: ScriptedBackend, model: Path) -> None:
    def broken() -> Iterator[np.ndarray[Any, Any]]:
        yield np.zeros((4, 6), np.uint8)
        raise ValueError("no more\nframes")

    with pytest.raises(ImageError, match="The iterator of images failed: no more"):
        mlx_magic.map("What?", broken(), model)


def test_images_are_opened_within_a_limit_of_bytes(
    script: ScriptedBackend, model: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes = 4 * 6 * 4
    monkeypatch.setattr("mlx_magic.data.mapping.run.AHEAD_BYTES", 5 * nbytes)
    opened = 0
    most = 0
    original = openers.Openers._open

    def count(self: openers.Openers, *job: Any) -> openers.OpenedImage:
        nonlocal opened, most
        opened += 1
        most = max(most, opened - len(script.requests))
        return original(self, *job)

    monkeypatch.setattr(openers.Openers, "_open", count)
    script.hold = "prefill"
    result = mlx_magic.map("What?", draw(40), model, wait=False, journal=False)
    while not script.requests:
        threading.Event().wait(0.01)
    assert opened <= 5 + openers.THREADS
    script.release()
    assert len(list(result)) == 40


def test_options_reach_every_request(script: ScriptedBackend, model: Path, draw: Draw) -> None:
    mlx_magic.map(
        "What?", draw(2), model, system="Short.", max_tokens=1, temperature=0.5, seed=3, stop="x",
        kv_bits=8, think=False, max_pixels=6,
    )  # fmt: skip
    for request in script.requests:
        assert (request.system, request.kv_bits, request.think) == ("Short.", 8, False)
        assert (request.sampling.max_tokens, request.sampling.seed) == (1, 3)
        assert request.sampling.stop == ("x",)
        assert request.images[0].size == (3, 2)


def test_rows_are_light_and_pickle(script: ScriptedBackend, model: Path, draw: Draw) -> None:
    folder = draw(3)
    result = mlx_magic.map("What?", folder, model)
    for row in result:
        assert row.result is not None
        [light] = row.result.images
        assert (light.stored.nbytes, light.size, light.digest) == (0, (6, 4), row.image.digest)
        assert light.pixels.tobytes() == Image.open(row.image.path).tobytes()
    data = pickle.dumps(result)
    assert len(data) < 3 * 2_000
    again = pickle.loads(data)
    assert again.frame.equals(result.frame)
    image, changed = again[1].image.open()
    assert (image.digest, changed) == (again[1].image.digest, False)
    Image.new("RGB", (6, 4), "white").save(folder / "1.png")
    assert again[1].image.open()[1]
    with pytest.raises(ImageError, match="has changed since the map"):
        again[1].result.images[0].pixels  # noqa: B018
    (folder / "1.png").unlink()
    with pytest.raises(ImageError):
        again[1].image.open()


def test_table_is_written_to_parquet(script: ScriptedBackend, model: Path, draw: Draw) -> None:
    result = mlx_magic.map("What?", draw(3), model)
    result.to_parquet("answers.parquet")
    assert pd.read_parquet("answers.parquet")["text"].tolist() == ["One two."] * 3
    with pytest.raises(RequestError, match="cannot be written"):
        result.to_parquet("nowhere/answers.parquet")


def test_table_without_pandas_is_an_error_of_one_line() -> None:
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from mlx_magic.data.mapping.frame import Layout, frame\n"
        "from mlx_magic.errors import RequestError\n"
        "try: frame([], Layout((None,), False, False, 'text'))\n"
        "except RequestError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "A table needs pandas: pip install pandas.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "limit is 0: use a whole number of 1 or more."),
        ({"limit": True}, "limit is True"),
        ({"errors": "ignore"}, 'errors is \'ignore\': use "coerce" or "raise".'),
        ({"journal": 3}, "journal is 3: use a path, or False for none."),
        ({"client": object()}, "client is not available yet: leave it out."),
        ({"wait": "no"}, "wait is 'no': use True or False."),
        ({"prompt": {}}, "prompt is an empty dictionary: name a question."),
        ({"prompt": {"a": "x", "a ": "y"}}, "Two questions are named 'a'."),
        ({"prompt": {3: "x"}}, "The name of a question is 3: use a str."),
        ({"prompt": " "}, "The prompt is empty: write a question."),
        ({"model": []}, "model is an empty list: name a model."),
        ({"model": ["a", "a"]}, "model names the same model twice."),
        ({"images": []}, "There is no image to ask about."),
        ({"images": "empty"}, "The folder empty has no images."),
        ({"images": "*.gif"}, "No file matches '*.gif'."),
        ({"images": pd.DataFrame({"a": [1]})}, "images is a whole DataFrame: give it with its"),
        ({"images": (pd.DataFrame({"a": [1]}), "b")}, "has no column b: it has a."),
        ({"images": iter(())}, "The iterator of images is empty."),
        ({"temperature": -1}, "temperature is -1"),
        ({"max_pixels": 0}, "max_pixels is 0"),
    ],
)
def test_bad_arguments_are_errors_of_one_line(
    arguments: dict[str, Any], message: str, script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    Path("empty").mkdir()
    given = {"prompt": "What?", "images": draw(1), "model": model, **arguments}
    with pytest.raises(mlx_magic.errors.MlxMagicError) as caught:
        mlx_magic.map(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert script.requests == []


def test_map_is_not_imported_by_a_star() -> None:
    assert "map" not in mlx_magic.__all__
    assert MapResult.__module__ == "mlx_magic"


@dataclass
class Shop:
    name: str
    tags: list[int]


@dataclass
class Bill:
    total: int
    shop: Shop


def test_fields_of_a_schema_become_columns(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    script.pieces = ['{"total": 3, "shop": {"name": "A", "tags": [1]}}']
    first = mlx_magic.map("What?", draw(2), model, schema=Bill)
    expected = ["image", "total", "shop.name", "shop.tags", "confidence", "error"]
    assert list(first.frame.columns) == expected
    assert first.frame["shop.tags"][1] == [1]
    # Stored answers are read as the typed objects again.
    again = mlx_magic.map("What?", draw(2), model, schema=Bill)
    assert [row.reused for row in again] == [True, True]
    assert [row.result and row.result.data for row in again] == [Bill(3, Shop("A", [1]))] * 2
    assert again.frame.equals(first.frame)
    asked = len(script.requests)
    for change in ({"schema": Shop}, {"schema": Bill, "schema_prompt": ""}, {}):
        mlx_magic.map("What?", draw(2), model, **change)
        asked += 2
        assert len(script.requests) == asked


def test_answer_that_does_not_follow_the_schema_says_why(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    script.pieces = ['{"total": "many"']
    for _ in range(2):
        [row] = mlx_magic.map("What?", draw(1), model, schema=Bill)
        assert row.result is not None
        assert (row.error, row.result.data, row.result.complete) == (None, None, False)
        result = mlx_magic.map("What?", draw(1), model, schema=Bill)
        assert result.frame["error"][0] == row.result.data_error
    assert len(script.requests) == 1


def test_examples_come_before_every_question(
    script: ScriptedBackend, model: Path, draw: Draw
) -> None:
    folder = draw(4)
    images = [folder / "0.png", folder / "1.png"]
    shown = [(folder / "3.png", "Like this.")]
    mlx_magic.map("What?", images, model, examples=shown)
    for request in script.requests:
        [turn] = request.history
        assert (turn.prompt, turn.answer, len(turn.images)) == ("What?", "Like this.", 1)
    assert len(script.requests) == 2
    mlx_magic.map("What?", images, model, examples=shown)
    assert len(script.requests) == 2
    mlx_magic.map("What?", images, model, examples=[(folder / "2.png", "Like this.")])
    assert len(script.requests) == 4
