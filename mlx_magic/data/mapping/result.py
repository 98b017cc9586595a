"""The result of a map: its rows, which arrive while it runs, and tables of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from mlx_magic.data.mapping import frame as frames
from mlx_magic.data.mapping.rows import MapRow

if TYPE_CHECKING:
    import os

    import pandas as pd

    from mlx_magic.data.mapping.plan import MapPlan


@dataclass(frozen=True, slots=True)
class MapProgress:
    """How far a map has come.

    Attributes
    ----------
    done : int
        Rows that have an answer or an error.
    total : int or None
        All rows; None if it is not known.
    failed, reused : int
        Of those done, how many have an error, and how many came from the journal.
    elapsed : float
        Seconds since the first row was asked for, without pauses.
    rate : float
        Recent rows per second; 0 is unknown.
    left : float or None
        Estimated seconds to the end; None is unknown.
    paused : bool
    """

    done: int = 0
    total: int | None = None
    failed: int = 0
    reused: int = 0
    elapsed: float = 0.0
    rate: float = 0.0
    left: float | None = None
    paused: bool = False


class MapGallery:
    """Rows of a map to look at: thumbnails with their answers. Made by `MapResult.gallery`.

    Attributes
    ----------
    rows : tuple of MapRow
    max_pixels, normalize : object
        Those with which the images were opened.
    """

    def __init__(self, rows: Sequence[MapRow], max_pixels: int | None, normalize: bool) -> None:
        self.rows = tuple(rows)
        self.max_pixels = max_pixels
        self.normalize = normalize

    def __repr__(self) -> str:
        return f"<MapGallery of {len(self.rows)} rows>"


class MapResult(Sequence[MapRow]):
    """The rows of a map, in the order of its input. Returned by `mlx_magic.map`.

    While the map runs it holds the rows up to the first one that is not answered yet; iterating
    waits for the next row. After the end, or a cancel, it holds all rows that were answered.

    Attributes
    ----------
    notes : list of str
        What a person should know: what was left out, or that nothing is stored.
    """

    def __init__(self, plan: MapPlan) -> None:
        self._per_image = len(plan.questions) * len(plan.models)
        self._layout = frames.Layout(
            plan.rows.index_names,
            plan.named,
            plan.several_models,
            frames.answer_kind(plan.settings),
        )
        self._image_options: tuple[int | None, bool] = (
            plan.settings.max_pixels,
            plan.settings.normalize,
        )
        self.notes: list[str] = [plan.rows.note] if plan.rows.note else []
        self._rows: dict[int, MapRow] = {}
        self._ready = 0
        self._finished: list[MapRow] | None = None
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._cancel: Callable[[], None] = lambda: None
        self._serve: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        with self._changed:
            return self._ready if self._finished is None else len(self._finished)

    @overload
    def __getitem__(self, at: int) -> MapRow: ...
    @overload
    def __getitem__(self, at: slice) -> list[MapRow]: ...
    def __getitem__(self, at: int | slice) -> MapRow | list[MapRow]:
        with self._changed:
            rows = self._finished
            if rows is None:
                rows = [self._rows[position] for position in range(self._ready)]
        return rows[at]

    def __iter__(self) -> Iterator[MapRow]:
        at = 0
        while (row := self._wait_for(at)) is not None:
            yield row
            at += 1

    def __repr__(self) -> str:
        rows = self.rows
        failed = sum(row.error is not None for row in rows)
        state = "" if self.done else ", running"
        return f"<MapResult of {len(rows)} rows, {failed} with an error{state}>"

    @property
    def done(self) -> bool:
        """Whether the map has ended."""
        return self._finished is not None

    @property
    def rows(self) -> list[MapRow]:
        """All rows that are there now, in order, whatever is missing between them."""
        with self._changed:
            if self._finished is not None:
                return list(self._finished)
            return [self._rows[position] for position in sorted(self._rows)]

    @property
    def frame(self) -> pd.DataFrame:
        """The answers so far, as a table.

        Columns are ``image``; ``model`` and ``question`` where there are several; those of the
        answer: ``text``, or the fields of a schema, or ``choice`` and ``probability``; then
        ``confidence`` and ``error``. A column of the answer whose name is taken gets an
        underscore. The index is that of the input.

        Raises
        ------
        RequestError
            pandas is not installed.
        """
        return frames.frame(self.rows, self._layout)

    @property
    def runs(self) -> pd.DataFrame:
        """How each row was made: ``finish_reason``, ``model``, ``tokens``, ``seconds``.

        ``tokens`` are those of prompt and answer; ``seconds`` those from the request to the end
        of the answer, without the load of the model. The index is that of `frame`.

        Raises
        ------
        RequestError
            pandas is not installed.
        """
        return frames.runs(self.rows, self._layout)

    def gallery(self, limit: int = 100) -> MapGallery:
        """Return thumbnails with their answers, for display.

        Parameters
        ----------
        limit : int
            Maximum number of rows.
        """
        return MapGallery(self.rows[:limit], *self._image_options)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write `frame` to a Parquet file.

        Raises
        ------
        RequestError
            pandas or pyarrow is missing, or the file cannot be written.
        """
        frames.to_parquet(self.frame, path)

    def cancel(self) -> None:
        """Stop the map. Rows that were answered stay."""
        self._cancel()

    def wait(self) -> MapResult:
        """Wait for the end, and return this object.

        Raises
        ------
        MlxMagicError
            The map failed as a whole, such as without a model.
        """
        for _ in self:
            pass
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (
            self.rows,
            self._per_image,
            self._layout,
            self._image_options,
            self.notes,
        )

    def _wait_for(self, at: int) -> MapRow | None:
        """Return a row once it is there; None after the last one."""
        while True:
            with self._changed:
                if self._finished is not None:
                    if at < len(self._finished):
                        return self._finished[at]
                    if self._failure is not None:
                        raise self._failure
                    return None
                if at < self._ready:
                    return self._rows[at]
                # Short waits, so that Ctrl-C is handled.
                self._changed.wait(0.05)
            self._serve()

    def _set(self, position: int, row: MapRow) -> None:
        """Set a row; on the map's thread."""
        with self._changed:
            self._rows[position] = row
            while self._ready in self._rows:
                self._ready += 1
            self._changed.notify_all()

    def _end(self, failure: BaseException | None = None) -> None:
        """Keep the rows that are there; no more will come."""
        with self._changed:
            if self._finished is None:
                self._finished = [self._rows[position] for position in sorted(self._rows)]
                self._rows = {}
                self._failure = failure
            self._cancel = self._serve = _nothing
            self._changed.notify_all()


def _nothing() -> None:
    return None


def _restored(
    rows: list[MapRow],
    per_image: int,
    layout: frames.Layout,
    image_options: tuple[int | None, bool],
    notes: list[str],
) -> MapResult:
    """Return the rows of a pickle."""
    result = MapResult.__new__(MapResult)
    result._per_image, result._layout, result._image_options = per_image, layout, image_options
    result.notes, result._rows, result._ready = notes, {}, 0
    result._finished, result._failure = rows, None
    result._changed = threading.Condition()
    result._cancel = result._serve = _nothing
    return result


MapResult.__module__ = MapProgress.__module__ = MapGallery.__module__ = "mlx_magic"
