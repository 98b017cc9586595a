"""Tables with a column of images: pandas, polars, pyarrow, datasets, CSV and Parquet files."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mlx_magic.errors import ImageError, RequestError
from mlx_magic.formatting import reason, shown
from mlx_magic.images.foreign.containers import package_of, type_names
from mlx_magic.user_folders import absolute

FILE_KINDS = (".csv", ".tsv", ".parquet")
"""Suffixes of files of rows."""

Records = Iterator[tuple[Any, Mapping[str, Any]]]
"""Label of the index, and the values by column, of each row."""

_LARGEST_FIELD = 100_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table whose rows are read one after the other.

    Attributes
    ----------
    columns : tuple of str
    records : callable
        Returns its rows, from the first one.
    total : int or None
        Number of rows, where it is known.
    index_names : tuple
        Names of the levels of the index.
    folder : Path or None
        Folder of a file of rows, beside which relative paths are looked up first.
    """

    columns: tuple[str, ...]
    records: Callable[[], Records]
    total: int | None = None
    index_names: tuple[Any, ...] = (None,)
    folder: Path | None = None


def table_of(value: Any) -> Table | None:
    """Return a table of pandas, polars, pyarrow or datasets; None for other values."""
    package, names = package_of(value), type_names(value)
    if package == "pandas" and "DataFrame" in names:
        return _pandas(value)
    if package == "polars" and "DataFrame" in names:
        return Table(
            tuple(map(str, value.columns)),
            lambda: enumerate(value.iter_rows(named=True)),
            len(value),
        )
    if package == "pyarrow" and "Table" in names:
        return Table(tuple(value.column_names), lambda: enumerate(_arrow(value)), value.num_rows)
    if package == "datasets" and names & {"Dataset", "IterableDataset"}:
        columns = tuple(value.column_names or ())
        if not columns:
            columns = tuple(map(str, next(iter(value), {})))
        total = len(value) if hasattr(value, "__len__") else None
        return Table(columns, lambda: enumerate(value), total)
    return None


def dataset_column(value: Any) -> tuple[Table, str] | None:
    """Return the dataset of a column ``ds["image"]`` and its name; None for other values."""
    if package_of(value) != "datasets" or not type_names(value) & {"Column", "IterableColumn"}:
        return None
    source, name = getattr(value, "source", None), getattr(value, "column_name", None)
    table = table_of(source)
    return (table, name) if table is not None and isinstance(name, str) else None


def pandas_column(value: Any) -> Records | None:
    """Return label and value of each row of a pandas Series; None for other values."""
    if package_of(value) != "pandas" or "Series" not in type_names(value):
        return None
    items: Records = iter(value.items())
    return items


def index_names(value: Any) -> tuple[Any, ...]:
    """Return the names of the index of a pandas object."""
    return tuple(value.index.names)


def split_name(text: str) -> tuple[Path, str] | None:
    """Split ``rows.csv#column`` into a file of rows and a column, which may be empty.

    None if it is no such name. Without a column the file has to exist.
    """
    name, sign, column = text.partition("#")
    try:
        if absolute(text).is_file():
            name, sign, column = text, "", ""
        found = absolute(name)
        if not name.lower().endswith(FILE_KINDS) or not (sign or found.is_file()):
            return None
        return found, column
    except (OSError, ValueError):
        return None


def file_table(path: Path) -> Table:
    """Open a CSV, TSV or Parquet file.

    Raises
    ------
    ImageError
        It cannot be read.
    """
    label = shown(str(path))
    try:
        if path.suffix.lower() == ".parquet":
            return _parquet(path)
        return _csv(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageError(f"{label} cannot be read: {reason(error)}.", source=label) from error


def require_column(table: Table, column: str, label: str) -> None:
    """Refuse a name that is no column of a table.

    Raises
    ------
    RequestError
    """
    if column in table.columns:
        return
    known = ", ".join(shown(name, 40) for name in table.columns[:12]) or "none"
    if not column:
        raise RequestError(
            f"{label} has the columns {known}: name that of the images.", option="images"
        )
    close = difflib.get_close_matches(column, table.columns, n=1)
    hint = f"did you mean {shown(close[0], 40)}?" if close else f"it has {known}."
    raise RequestError(f"{label} has no column {shown(column, 40)}: {hint}", option="images")


def _pandas(frame: Any) -> Table:
    names = [str(name) for name in frame.columns]

    def records() -> Records:
        for label, row in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
            yield label, dict(zip(names, row, strict=True))

    return Table(tuple(names), records, len(frame), index_names(frame))


def _arrow(table: Any) -> Iterator[Mapping[str, Any]]:
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()


def _csv(path: Path) -> Table:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","

    def reader() -> Iterator[dict[str, Any]]:
        csv.field_size_limit(_LARGEST_FIELD)
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file, delimiter=delimiter)

    with path.open(newline="", encoding="utf-8-sig") as file:
        names: Sequence[str] = next(csv.reader(file, delimiter=delimiter), [])
        if len(set(names)) < len(names):
            raise csv.Error("two columns have the same name")
        # Read to the end once, for the number of rows: a file of names is small.
        total = sum(1 for _ in csv.reader(file, delimiter=delimiter) if _)

    def records() -> Records:
        for at, row in enumerate(reader()):
            row.pop(None, None)  # type: ignore[call-overload]
            # An empty field has no value, as in pandas.
            yield at, {name: value or None for name, value in row.items()}

    return Table(tuple(names), records, total, folder=path.parent)


def _parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise RequestError(
            f"{shown(str(path))} needs pyarrow: pip install pyarrow.", option="images"
        ) from None
    try:
        file = parquet.ParquetFile(path)
    except Exception as error:
        raise OSError(reason(error)) from error
    names = tuple(file.schema_arrow.names)
    total = file.metadata.num_rows
    file.close()

    def records() -> Records:
        with parquet.ParquetFile(path) as opened:
            rows = (row for batch in opened.iter_batches(256) for row in batch.to_pylist())
            yield from enumerate(rows)

    return Table(names, records, total, folder=path.parent)


def limited(records: Records, limit: int | None) -> Records:
    """Return the first rows."""
    return records if limit is None else islice(records, limit)
