"""Columns and records of other libraries, recognized without importing these."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence, ValuesView
from typing import Any

from PIL import Image

from mlx_magic.errors import ImageError
from mlx_magic.images.formats import SNIFF_BYTES, image_format

_BYTES_KEYS = ("bytes", "content")
_NAME_KEYS = ("path", "name")
_BUFFERS = (bytes, bytearray, memoryview)


def package_of(value: Any) -> str:
    """Return the name of the package that defines the type of `value`."""
    return type(value).__module__.partition(".")[0]


def type_names(value: Any) -> set[str]:
    """Return the names of the type of `value` and of its bases."""
    return {kind.__name__ for kind in type(value).__mro__}


def column_items(value: Any, label: str) -> Iterator[tuple[object, Any]] | None:
    """Return index and value of each row of a column; None for other values.

    A column is a pandas or polars Series, an array of pyarrow, a column of a Hugging Face
    dataset, or the rows of one of its columns.

    Raises
    ------
    ImageError
        While it is read, if a row has no value.
    """
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, pandas.Series):
        return _present(
            ((repr(key), item) for key, item in value.items()), label, ".dropna()", pandas
        )
    package, names = package_of(value), type_names(value)
    if package == "polars" and "Series" in names:
        return _present(enumerate(value.to_list()), label, ".drop_nulls()", pandas)
    if package == "pyarrow" and names & {"Array", "ChunkedArray"}:
        return _present(
            ((at, item.as_py()) for at, item in enumerate(value)), label, ".drop_null()", pandas
        )
    if package == "datasets" and names & {"Column", "IterableColumn"}:
        return _present(enumerate(value), label, ".filter(...)", pandas)
    return None


def _present(
    rows: Iterator[tuple[object, Any]] | enumerate[Any], label: str, advice: str, pandas: Any
) -> Iterator[tuple[object, Any]]:
    for key, item in rows:
        if item is None or (
            pandas is not None and pandas.api.types.is_scalar(item) and pandas.isna(item)
        ):
            raise ImageError(
                f"{label} has no value at index {key}: leave such rows out with {advice}.",
                source=label,
            )
        yield key, item


def sequence_items(value: Any) -> Iterator[tuple[object, Any]] | None:
    """Return index and value of each item of a list, an iterator, a deque ...; None for others."""
    if isinstance(value, (str, *_BUFFERS)) or hasattr(value, "read"):
        return None  # an open file is an iterator, too, but one image
    if isinstance(value, (list, tuple, ValuesView, Iterator)):
        return enumerate(value)
    # An array of numbers is a sequence, too: its buffer is a file or an image.
    if isinstance(value, Sequence) and not _has_buffer(value) and type(value) is not range:
        return enumerate(value)
    return None


def _has_buffer(value: Any) -> bool:
    try:
        memoryview(value).release()
    except (TypeError, BufferError):
        return False
    return True


def scalar(value: Any) -> Any:
    """Return the Python value of a pyarrow scalar; other values unchanged."""
    if package_of(value) == "pyarrow" and "Scalar" in type_names(value):
        return value.as_py()
    return value


def widget_value(value: Any) -> Any:
    """Return the value of an ipywidgets FileUpload or Image; other values unchanged."""
    if package_of(value) == "ipywidgets" and type_names(value) & {"FileUpload", "Image"}:
        return value.value
    return value


def record_image(value: Any, label: str) -> tuple[Any, str] | None:
    """Return the image of a record and its name; None if the value is no record with an image.

    Such are the undecoded images of a Hugging Face dataset (``{"bytes": ..., "path": ...}``), the
    files of a FileUpload, and other dictionaries in which exactly one value is an image.

    Raises
    ------
    ImageError
        If several values are images.
    """
    if not isinstance(value, Mapping):
        return None
    name = next(
        (str(value[key]) for key in _NAME_KEYS if isinstance(value.get(key), str) and value[key]),
        "",
    )
    for key in _BYTES_KEYS:
        if isinstance(value.get(key), _BUFFERS):
            return value[key], name
    if "bytes" in value and value["bytes"] is None and name:
        return value.get("path") or name, ""
    images = [key for key, item in value.items() if _is_image(item)]
    if len(images) > 1:
        shown = ", ".join(repr(key) for key in images[:4])
        raise ImageError(
            f"{label} is a dictionary with {len(images)} images: give one of {shown}, or "
            "list(d.values()).",
            source=label,
        )
    if not images:
        return None
    return value[images[0]], name or str(images[0])


def _is_image(value: Any) -> bool:
    if isinstance(value, _BUFFERS):
        return image_format(bytes(value)[:SNIFF_BYTES]) is not None
    if isinstance(value, Mapping):
        return any(isinstance(value.get(key), _BUFFERS) for key in _BYTES_KEYS)
    return isinstance(value, Image.Image)


def table_advice(value: Any, label: str) -> str:
    """Return the message for a whole table instead of a column of it; ``""`` for other values."""
    package, names = package_of(value), type_names(value)
    if hasattr(value, "columns") and names & {"DataFrame", "LazyFrame"}:
        columns, what = [str(column) for column in value.columns], "DataFrame"
    elif package == "datasets" and names & {"Dataset", "IterableDataset", "DatasetDict"}:
        if names & {"DatasetDict", "IterableDatasetDict"}:
            splits = [str(name) for name in value]
            split = splits[0] if len(splits) == 1 else "train"
            return f'{label} is a DatasetDict: give a column of a split, ds["{split}"]["image"].'
        columns, what = list(value.column_names or ()), "dataset"
    elif package == "pyarrow" and names & {"Table", "RecordBatch"}:
        columns, what = list(value.column_names), "table"
    else:
        return ""
    column = columns[0] if len(columns) == 1 else "column"
    return f'{label} is a whole {what}: give its column of images, df["{column}"].'
