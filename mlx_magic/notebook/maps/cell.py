"""``%%vision IMAGES --map``: the cell's images as rows, its prompt with ``{column}``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mlx_magic.data.mapping import tables
from mlx_magic.data.mapping.plan import MapPlan, make_plan
from mlx_magic.data.mapping.prompts import Column, PromptTemplate
from mlx_magic.data.mapping.result import MapResult
from mlx_magic.data.mapping.run import MapTask
from mlx_magic.data.mapping.sources import rows_of
from mlx_magic.errors import RequestError
from mlx_magic.formatting import shown
from mlx_magic.notebook.kernel.running_cell import RunningCell
from mlx_magic.notebook.magic_line import template
from mlx_magic.notebook.magic_line.expressions import Evaluate, parse_expression
from mlx_magic.notebook.magic_line.image_arguments import image_values
from mlx_magic.notebook.maps.terminal_line import TerminalLine
from mlx_magic.notebook.maps.view import MapView

if TYPE_CHECKING:
    from mlx_magic.notebook.magic_line.options import CellArguments
    from mlx_magic.notebook.magic_line.tokens import Token
    from mlx_magic.options import Settings

_MARK = "\0"
"""Around the name of a column in a prompt that is being filled; no text of a person has it."""


def plan_of(
    arguments: CellArguments,
    settings: Settings,
    variables: Mapping[str, object],
    evaluate: Evaluate,
    note: template.Note,
) -> MapPlan:
    """Return the plan of a cell; its expressions are evaluated here.

    Parameters
    ----------
    arguments : CellArguments
    settings : Settings
        Its options, with the schema that they name.
    variables : mapping
    evaluate : callable
    note : callable

    Raises
    ------
    RequestError
        A name in the prompt is a column and a variable, or an option cannot be used.
    ImageError
        There is no image.
    """
    images = _images(arguments.images, variables, evaluate)
    columns = rows_of(images, 1).columns if _has_columns(images) else ()
    if not columns and _is_list_of_records(images):
        columns = tuple({key: None for record in images for key in record})
    prompt = _prompt(arguments.prompt, columns, variables, evaluate, note)
    return make_plan(
        prompt,
        images,
        settings.model,
        settings,
        limit=settings.limit,
        journal=settings.journal,
        default_model=_default_model(),
    )


def running_cell(
    ipython: Any, task: MapTask, *, awaited: bool, alone: bool = False, show: bool = True
) -> RunningCell[MapResult]:
    """Return the cell that waits for a map, with its view."""
    return RunningCell(
        ipython,
        task,
        awaited=awaited,
        alone=alone,
        show=show,
        widgets=lambda reason: MapView(task, why_no_click=reason),
        terminal=lambda: TerminalLine(task),
        tick=task.serve,
    )


def _default_model() -> str:
    from mlx_magic import default_session
    from mlx_magic.engine.request import DEMO

    return default_session.current().default_model or DEMO


def _images(tokens: Iterable[Token], variables: Mapping[str, object], evaluate: Evaluate) -> Any:
    """Return the images of the line: one value as it is, several as a list."""
    values: list[Any] = []
    for token in tokens:
        split = tables.split_name(token.text)
        if split is not None:
            values.append(token.text)
        else:
            values += [value for _, value in image_values([token], variables, evaluate)]
    if not values:
        raise RequestError(
            "--map needs images: a folder, a glob, a list or a column.", option="map"
        )
    return values[0] if len(values) == 1 else values


def _has_columns(images: Any) -> bool:
    """Whether the images are a table with named columns, whose rows can be read again."""
    if isinstance(images, str | os.PathLike):
        return tables.split_name(os.fspath(images)) is not None
    if isinstance(images, tuple | list) and len(images) == 2:
        return tables.table_of(images[0]) is not None
    return tables.dataset_column(images) is not None


def _is_list_of_records(images: Any) -> bool:
    return (
        isinstance(images, list | tuple)
        and bool(images)
        and all(isinstance(record, Mapping) for record in images)
    )


def _prompt(
    text: str,
    columns: tuple[str, ...],
    variables: Mapping[str, object],
    evaluate: Evaluate,
    note: template.Note,
) -> PromptTemplate:
    """Fill the expressions of a prompt, and leave the places of the columns."""

    def value(expression: str) -> object:
        if expression not in columns:
            return evaluate(expression)
        if expression in variables:
            name = shown(expression, 60)
            raise RequestError(
                f"{{{name}}} is a column and a variable: rename one of them.", option="prompt"
            )
        return f"{_MARK}{expression}{_MARK}"

    if _MARK in text:
        raise RequestError("The prompt has a zero byte: remove it.", option="prompt")
    for name in columns:
        if parse_expression(name) is None:  # such as a name with spaces
            text = re.sub(rf"(?<!\{{)\{{{re.escape(name)}\}}(?!\}})", _marked(name), text)
    filled = template.fill(text, value, note).strip("\n")
    parts = filled.split(_MARK)
    found = tuple(
        Column(part) if at % 2 else part for at, part in enumerate(parts) if at % 2 or part
    )
    return PromptTemplate(found)


def _marked(name: str) -> str:
    """Return the mark of a column as the replacement of a regular expression."""
    return f"{_MARK}{name}{_MARK}".replace("\\", r"\\")
