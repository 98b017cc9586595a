"""What a map takes as images, as rows: folders, patterns, lists, generators, columns, tables."""

from __future__ import annotations

import glob
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mlx_magic.data.mapping import tables
from mlx_magic.data.mapping.prompts import _is_missing
from mlx_magic.data.mapping.rows import InputRow, InputRows
from mlx_magic.errors import ImageError, ImageNotFoundError, RequestError
from mlx_magic.formatting import reason, short_label
from mlx_magic.images import files, objects
from mlx_magic.images.foreign.containers import table_advice, type_names
from mlx_magic.images.globs import match_files
from mlx_magic.images.image import ImageInput
from mlx_magic.user_folders import cwd, expanded

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".heic", ".heif", ".qoi"}
)
"""Suffixes of files that a folder gives."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
_BUFFERS = (bytes, bytearray, memoryview)
_IMAGE_KEYS = ("image", "path", "file", "url")


def rows_of(images: Any, limit: int | None = None) -> InputRows:
    """Return the rows of a map. Nothing is opened; folders and patterns are listed.

    Parameters
    ----------
    images : object
        A folder (recursive), a pattern, a path or URL; ``"rows.csv#column"`` or a Parquet file;
        a list, tuple or iterator; a column of pandas, polars, pyarrow or a Hugging Face dataset;
        ``(table, "column")``; or anything that is one image.
    limit : int, optional
        Number of images, from the first one.

    Raises
    ------
    ImageError
        There is no image, or no such folder.
    RequestError
        There is no such column, or a whole table was given.
    """
    found = _rows(images)
    if limit is not None:
        total = None if found.total is None else min(found.total, limit)
        found = replace(found, rows=islice(found.rows, limit), total=total)
    if found.total == 0:
        raise ImageError("There is no image to ask about.", source="images")
    return found


def _rows(images: Any) -> InputRows:
    if isinstance(images, str | os.PathLike):
        return _named(images)
    if (
        isinstance(images, list | tuple)
        and len(images) == 2
        and isinstance(images[1], str)
        and (table := tables.table_of(images[0])) is not None
    ):
        return _table(table, images[1], objects.describe_object(images[0]))
    if tables.table_of(images) is not None:
        kind = type(images).__name__
        raise RequestError(
            f'images is a whole {kind}: give it with its column of images, (table, "column").',
            option="images",
        )
    if advice := table_advice(images, "images"):
        raise RequestError(advice, option="images")
    if (column := tables.dataset_column(images)) is not None:
        return _table(*column, "the dataset")
    if (items := tables.pandas_column(images)) is not None:
        name = str(images.name) if images.name is not None else "column"
        rows = (_row(label, value, f"{name}[{label!r}]") for label, value in items)
        return InputRows(rows, len(images), index_names=tables.index_names(images))
    return _collection(images)


def _collection(images: Any) -> InputRows:
    names = type_names(images)
    package = type(images).__module__.partition(".")[0]
    if package == "polars" and "Series" in names:
        return InputRows(_positions(images, images.name or "column"), len(images))
    if package == "pyarrow" and names & {"Array", "ChunkedArray"}:
        values = (item.as_py() for item in images)
        return InputRows(_positions(values, "column"), len(images))
    if (
        package == "numpy"
        and "ndarray" in names
        and (images.ndim == 4 or images.dtype.kind in "OU")
    ):
        flat = images if images.ndim == 4 else images.flat
        return InputRows(_positions(iter(flat), "array"), len(images))
    if isinstance(images, list | tuple | ValuesView):
        return _list(list(images))
    if isinstance(images, Iterator) and not hasattr(images, "read"):
        return _generator(images)
    if _is_sequence(images):
        return InputRows(_positions(images, "list"), len(images))
    return InputRows(iter([_row(0, images, objects.describe_object(images))]), 1)


def _is_sequence(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, (str, *_BUFFERS, range)):
        return False
    try:
        memoryview(value).release()  # type: ignore[arg-type]
    except (TypeError, BufferError):
        return True
    return False


def _named(value: str | os.PathLike[str]) -> InputRows:
    """Return the rows of a name: a file of rows, a folder, a pattern, or one image."""
    split = tables.split_name(os.fspath(value))
    if split is not None:
        path, column = split
        return _table(tables.file_table(path), column, short_label(os.fspath(value)))
    paths, note = expand(value)
    return InputRows(_positions(paths, "images"), len(paths), note=note)


def _list(values: list[Any]) -> InputRows:
    first = next((value for value in values if isinstance(value, Mapping)), None)
    if first is not None:
        return _records(values)
    found: list[Any] = []
    notes = []
    for value in values:
        if isinstance(value, str | os.PathLike):
            paths, note = expand(value)
            found += paths
            notes += [note] if note else []
        else:
            found.append(value)
    return InputRows(_positions(found, "list"), len(found), note="; ".join(notes))


def _records(values: list[Any]) -> InputRows:
    columns = dict.fromkeys(
        key
        for value in values
        if isinstance(value, Mapping)
        for key in value
        if isinstance(key, str)
    )
    rows = (_record(at, value) for at, value in enumerate(values))
    return InputRows(rows, len(values), tuple(columns))


def _generator(values: Iterator[Any]) -> InputRows:
    """Return the rows of an iterator; the first one is taken now, for the names of its columns."""
    first = list(islice(_guarded(values), 1))
    if not first:
        raise ImageError("The iterator of images is empty.", source="images")
    columns = [key for key in first[0] if isinstance(key, str)] if _has_columns(first[0]) else []
    # What it gave before may be changed by the next step: rows do not keep a way back to it.
    rows = (
        replace(_record(at, value), again=None)
        for at, value in enumerate(chain(first, _guarded(values)))
    )
    return InputRows(rows, None, tuple(columns), pulled=True)


def _has_columns(value: Any) -> bool:
    return isinstance(value, Mapping)


def _guarded(values: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            value = next(values)
        except StopIteration:
            return
        except Exception as error:
            raise ImageError(
                f"The iterator of images failed: {reason(error)}.", source="images"
            ) from error
        yield value


def _record(at: int, value: Any) -> InputRow:
    """Return the row of a dictionary, whose other values a prompt may name."""
    if not isinstance(value, Mapping):
        return _row(at, value, f"list[{at}]")
    columns = {key: item for key, item in value.items() if isinstance(key, str)}
    keys = [key for key in _IMAGE_KEYS if columns.get(key) is not None]
    image = columns[keys[0]] if keys and "bytes" not in columns else value
    return replace(_row(at, image, f"list[{at}]"), columns=columns)


def _table(table: tables.Table, column: str, label: str) -> InputRows:
    tables.require_column(table, column, label)

    def rows() -> Iterator[InputRow]:
        for index, record in table.records():
            value = record[column]
            beside = value
            if table.folder is not None and isinstance(value, str):
                beside = _beside(table.folder, value)
            row = _row(index, beside, f"{column}[{index!r}]")
            source = short_label(value) if beside is not value else row.source
            yield replace(row, columns=record, source=source)

    return InputRows(rows(), table.total, table.columns, table.index_names)


def _beside(folder: Path, text: str) -> str | Path:
    """Return a path of a file of rows: beside that file, else as it is."""
    if _URL.match(text):
        return text
    try:
        path = folder / expanded(text)
        return path if path.exists() else text
    except (OSError, ValueError):
        return text


def _positions(values: Iterable[Any], name: str) -> Iterator[InputRow]:
    for at, value in enumerate(values):
        yield _row(at, value, f"{name}[{at}]")


def _row(index: Any, value: Any, name: str) -> InputRow:
    if _is_missing(value):
        error = ImageError(f"{short_label(name)} has no value.", source=short_label(name))
        return InputRow(index, None, short_label(name), error=error)
    if isinstance(value, str) and (_URL.match(value.strip()) or len(value) > 4_096):
        return InputRow(index, value, short_label(value.strip()))
    if isinstance(value, str | os.PathLike):
        text = os.fsdecode(value)
        return InputRow(index, value, short_label(text), _path(text))
    if isinstance(value, ImageInput):
        return InputRow(index, value, value.source, again=_weakly(value))
    return InputRow(index, value, short_label(name), again=_weakly(value))


def _path(text: str) -> Path | None:
    """Return the absolute path of a local file; None for what has no such file."""
    try:
        path = cwd() / expanded(text)
        return path if path.is_file() else None
    except (OSError, ValueError):
        return None


def _weakly(value: Any) -> Callable[[], Any] | None:
    """Return a function that returns the value while the notebook still has it."""
    try:
        return weakref.ref(value)
    except TypeError:
        return None


def expand(value: str | os.PathLike[str]) -> tuple[list[str | Path], str]:
    """Return the files of a folder or a pattern, in natural order; else the value itself.

    Returns
    -------
    paths : list
    note : str
        What was left out of a folder; empty if nothing was.

    Raises
    ------
    ImageError
        A folder has no images, or cannot be read.
    ImageNotFoundError
        No file matches a pattern.
    """
    text = os.fsdecode(value)
    if isinstance(value, str) and _URL.match(text.strip()):
        return [text], ""
    try:
        path = cwd() / expanded(text)
        if path.is_dir():
            return _folder(Path(text), path)
        if not glob.has_magic(text) or path.exists():
            return [text if isinstance(value, str) else Path(text)], ""
    except (OSError, ValueError):
        return [text], ""
    return _pattern(text), ""


def _folder(given: Path, path: Path) -> tuple[list[str | Path], str]:
    label = short_label(str(given))
    found: list[str] = []
    others = 0

    def failed(error: OSError) -> None:
        raise ImageError(f"{label} cannot be read: {reason(error)}.", source=label) from error

    for folder, folders, names in os.walk(path, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(folder).relative_to(path)
        for name in names:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                found.append((relative / name).as_posix())
            else:
                others += 1
    if not found:
        extra = f" It has {others:,} other files." if others else ""
        raise ImageError(f"The folder {label} has no images.{extra}", source=label)
    found.sort(key=files.natural_key)
    note = f"{label}: left out {others:,} file{'s' * (others != 1)} without an image's suffix"
    return [given / name for name in found], note if others else ""


def _pattern(text: str) -> list[str | Path]:
    label = short_label(text)
    try:
        names = [
            name for name in match_files(str(expanded(text)), cwd()) if (cwd() / name).is_file()
        ]
    except (OSError, ValueError) as error:
        raise ImageNotFoundError(
            f"{label} is not a path to an image: {reason(error)}.", source=label
        ) from error
    if not names:
        raise ImageNotFoundError(f"No file matches '{label}'.", source=label)
    return [Path(name) for name in sorted(names, key=files.natural_key)]
