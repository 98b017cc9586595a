"""A finished map as a static MIME bundle: counts, and the first rows with thumbnails."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from mlx_magic.data.mapping.frame import Layout, answer_columns
from mlx_magic.data.mapping.result import MapGallery, MapResult
from mlx_magic.data.mapping.rows import MapRow
from mlx_magic.formatting import shown
from mlx_magic.notebook.display import formulas, sanitize
from mlx_magic.notebook.display.tables import Table
from mlx_magic.notebook.display.terminal import printable
from mlx_magic.notebook.maps.view import card_html, thumbnail_html

FIRST = 10
"""Rows that are shown."""

_WIDEST = 60
"""Characters of a cell in text."""

_LONGEST = 300
"""Characters of a cell in HTML."""

_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0;overflow-wrap:anywhere"


def bundle(result: MapResult) -> dict[str, str]:
    """Return a map's MIME bundle, without timings: the same on each run."""
    rows = result.rows
    head = [*columns(rows[:FIRST], result._layout)]
    lines = [counts(rows, result.done), *_error_lines(rows)]
    plain = Table(tuple(head), tuple(_texts(row, head, result._layout) for row in rows[:FIRST]))
    text = [repr(plain)] if rows else []
    if len(rows) > FIRST:
        text.append(f"… and {len(rows) - FIRST:,} more rows in .frame")
    return {
        "text/plain": printable("\n".join([lines[0], *text, *lines[1:]])),
        "text/html": _html(result, rows, head, lines),
    }


def gallery_bundle(gallery: MapGallery) -> dict[str, str]:
    """Return a gallery's MIME bundle."""
    cards = "".join(
        card_html(row, gallery.max_pixels, gallery.normalize, _LONGEST) for row in gallery.rows
    )
    lines = [f"{row.image.source}: {_answer(row)}" for row in gallery.rows]
    return {
        "text/plain": printable("\n".join(shown(line, 120) for line in lines)),
        "text/html": (
            f'<div class="{formulas.UNSET}" style="display:flex;flex-wrap:wrap;gap:12px;'
            f'overflow:auto">{cards}</div>'
        ),
    }


def counts(rows: Sequence[MapRow], done: bool = True) -> str:
    """Return how many rows there are, and how many of them have an error."""
    failed = sum(row.error is not None for row in rows)
    words = f"{len(rows):,} row{'s' * (len(rows) != 1)}"
    parts = [words, f"{failed:,} error{'s' * (failed != 1)}" if failed else "no errors"]
    cut = sum(row.result is not None and row.result.finish_reason == "length" for row in rows)
    if cut:
        parts.append(f"{cut:,} cut off at max_tokens")
    return ", ".join(parts) + ("." if done else ", running.")


def columns(rows: Sequence[MapRow], layout: Layout) -> list[str]:
    """Return the headings of a table of rows."""
    found = ["image"]
    found += ["model"] if layout.models else []
    found += ["question"] if layout.questions else []
    names = dict.fromkeys(name for row in rows for name in answer_columns(row, layout.answer))
    return [*found, *(names or {"answer": None})]


def _texts(row: MapRow, head: Sequence[str], layout: Layout) -> tuple[str, ...]:
    return tuple(shown(text, _WIDEST) for text in _values(row, head, layout))


def _values(row: MapRow, head: Sequence[str], layout: Layout) -> list[str]:
    fixed = {"image": row.image.source, "model": row.model, "question": row.question}
    answer: dict[str, Any] = answer_columns(row, layout.answer)
    first = next((name for name in head if name not in fixed), "")
    values = []
    for name in head:
        if name in fixed:
            values.append(fixed[name])
        elif row.error is not None and name == first:
            values.append(f"error: {row.error}")
        else:
            value = answer.get(name)
            values.append("" if value is None else sanitize.to_plain(str(value)))
    return values


def _answer(row: MapRow) -> str:
    return f"error: {row.error}" if row.result is None else sanitize.to_plain(row.result.text)


def _error_lines(rows: Sequence[MapRow]) -> list[str]:
    """Return the errors of rows that are not shown, a few of them."""
    hidden = [row for row in rows[FIRST:] if row.error is not None]
    lines = [f"{row.image.source}: {row.error}" for row in hidden[:5]]
    if len(hidden) > 5:
        lines.append(f"… and {len(hidden) - 5:,} more errors")
    return [shown(line, 300) for line in lines]


def _html(result: MapResult, rows: list[MapRow], head: list[str], lines: list[str]) -> str:
    max_pixels, normalize = result._image_options
    titles = "".join(f'<th style="{_CELL}">{html.escape(name)}</th>' for name in ["", *head])
    body = []
    for row in rows[:FIRST]:
        cells = [f'<td style="{_CELL}">{thumbnail_html(row, max_pixels, normalize)}</td>']
        for value in _values(row, head, result._layout):
            cells.append(f'<td style="{_CELL}">{html.escape(shown(value, _LONGEST))}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    more = f"<p>… and {len(rows) - FIRST:,} more rows in <code>.frame</code></p>"
    errors = "".join(f"<li>{html.escape(line)}</li>" for line in lines[1:])
    table = f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return (
        f'<div class="{formulas.UNSET}" style="overflow:auto"><p>{html.escape(lines[0])}</p>'
        f"{table if rows else ''}{more if len(rows) > FIRST else ''}"
        f"{f'<ul>{errors}</ul>' if errors else ''}</div>"
    )
