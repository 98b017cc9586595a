"""Tables of a map's rows, as pandas knows them. pandas is imported when one is asked for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlx_magic.data.mapping.rows import MapRow
from mlx_magic.errors import RequestError
from mlx_magic.formatting import reason, shown
from mlx_magic.options import Settings
from mlx_magic.user_folders import absolute

if TYPE_CHECKING:
    import pandas as pd

AnswerKind = Literal["text", "data", "choice"]

_FIXED = ("image", "model", "question", "confidence", "error")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns a table has.

    Attributes
    ----------
    index_names : tuple
    questions, models : bool
        Whether there is a column for them.
    answer : {"text", "data", "choice"}
    """

    index_names: tuple[Any, ...]
    questions: bool
    models: bool
    answer: AnswerKind


def answer_kind(settings: Settings) -> AnswerKind:
    """Return what the columns of an answer are made of."""
    given = {option.name: value for option, value in settings}
    if given.get("choices") is not None:
        return "choice"
    if given.get("schema") is not None or given.get("format") == "json":
        return "data"
    return "text"


def frame(rows: Sequence[MapRow], layout: Layout) -> pd.DataFrame:
    """Return the answers as a table; see `MapResult.frame`.

    Raises
    ------
    RequestError
        pandas is not installed.
    """
    pandas = _pandas()
    taken = {"image", "confidence", "error"}
    taken |= {"model"} if layout.models else set()
    taken |= {"question"} if layout.questions else set()
    records = [answer_columns(row, layout.answer) for row in rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    if not names:
        names = {"text": ["text"], "choice": ["choice", "probability"]}.get(layout.answer, [])
    columns: dict[str, list[Any]] = {"image": [row.image.source for row in rows]}
    if layout.models:
        columns["model"] = [row.model for row in rows]
    if layout.questions:
        columns["question"] = [row.question for row in rows]
    for name in names:
        column = name
        while column in taken:
            column += "_"
        taken.add(column)
        columns[column] = [record.get(name) for record in records]
    columns["confidence"] = [_confidence(row) for row in rows]
    columns["error"] = [_problem(row) for row in rows]
    series = {name: _series(pandas, values) for name, values in columns.items()}
    made: pd.DataFrame = pandas.DataFrame(series)
    made.index = _index(pandas, rows, layout)
    return made


def runs(rows: Sequence[MapRow], layout: Layout) -> pd.DataFrame:
    """Return how the answers were made; see `MapResult.runs`.

    Raises
    ------
    RequestError
        pandas is not installed.
    """
    pandas = _pandas()
    results = [row.result for row in rows]
    made: pd.DataFrame = pandas.DataFrame(
        {
            "finish_reason": _series(
                pandas, [None if each is None else each.finish_reason for each in results]
            ),
            "model": [row.model for row in rows],
            "tokens": [0 if each is None else each.usage.total_tokens for each in results],
            "seconds": [0.0 if row.result is None else seconds(row) for row in rows],
        }
    )
    made.index = _index(pandas, rows, layout)
    return made


def seconds(row: MapRow) -> float:
    """Return the seconds of a row's answer, without the load of the model."""
    if row.result is None:
        return 0.0
    timings = row.result.timings
    return timings.queued + timings.vision + timings.prefill + timings.decode


def to_parquet(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table; an existing file is replaced only by a whole one.

    Raises
    ------
    RequestError
    """
    target = absolute(path)
    partial = target.with_name(f"{target.name}.partial")
    try:
        table.to_parquet(partial)
        partial.replace(target)
    except ImportError as error:
        raise RequestError("to_parquet needs pyarrow: pip install pyarrow.") from error
    # pyarrow has classes of its own for values that it cannot store.
    except Exception as error:
        partial.unlink(missing_ok=True)
        raise RequestError(
            f"{shown(str(target))} cannot be written: {reason(error)}.", option="path"
        ) from error


def answer_columns(row: MapRow, kind: AnswerKind) -> dict[str, Any]:
    """Return the columns of one answer; none for an error."""
    if row.result is None:
        return {}
    if kind == "choice":
        choice = getattr(row.result, "choice", None)
        return {"choice": choice, "probability": _probability(row.result, choice)}
    if kind == "data":
        return flattened(row.result.data)
    return {"text": row.result.text}


def flattened(data: Any) -> dict[str, Any]:
    """Return the fields of a value, nested ones dotted, lists as they are.

    As pandas' ``json_normalize`` names them. A value that has no fields is the column ``data``.
    """
    if (dump := getattr(data, "model_dump", None)) is not None:
        data = dump()  # of pydantic
    elif dataclasses.is_dataclass(data) and not isinstance(data, type):
        data = dataclasses.asdict(data)
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        return {"data": data}
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            found.update({f"{name}.{inner}": item for inner, item in flattened(value).items()})
        else:
            found[str(name)] = value
    return found


def _probability(result: Any, choice: Any) -> Any:
    probabilities = getattr(result, "probabilities", None)
    if not isinstance(probabilities, Mapping) or choice is None:
        return None
    if isinstance(choice, list | tuple | set):
        return {each: probabilities.get(each) for each in choice}
    return probabilities.get(choice)


def _problem(row: MapRow) -> str | None:
    """Return why a row has no answer, or an answer no data."""
    if row.error is not None:
        return str(row.error)
    return None if row.result is None else row.result.data_error


def _confidence(row: MapRow) -> Any:
    return None if row.result is None else getattr(row.result, "confidence", None)


def _series(pandas: Any, values: list[Any]) -> Any:
    """Return a column: numbers as numbers, everything else as objects that are left alone."""
    known = [value for value in values if value is not None]
    plain = known and all(type(value) in (int, float) for value in known)
    if plain and len(known) == len(values):
        return pandas.Series(values)
    if plain or (not known and values):
        as_number = plain or None
        return pandas.Series(values, dtype="float64" if as_number else "object")
    if known and len(known) == len(values) and all(type(value) is bool for value in known):
        return pandas.Series(values)
    return pandas.Series(values, dtype="object")


def _index(pandas: Any, rows: Sequence[MapRow], layout: Layout) -> Any:
    labels = [row.index for row in rows]
    if len(layout.index_names) > 1:
        if not labels:
            return pandas.MultiIndex.from_arrays([[] for _ in layout.index_names],
                                                 names=layout.index_names)  # fmt: skip
        return pandas.MultiIndex.from_tuples(labels, names=layout.index_names)
    return pandas.Index(labels, name=layout.index_names[0], tupleize_cols=False)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise RequestError("A table needs pandas: pip install pandas.", option="frame") from None
    return pandas
