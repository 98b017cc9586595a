"""Probabilities of choices, as a list of bars and as text."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

from mlx_magic.notebook.display.sanitize import to_markdown, to_plain
from mlx_magic.notebook.magic_line.expressions import one_line

if TYPE_CHECKING:
    from mlx_magic.engine.result import VisionResult

MOST_SHOWN = 10
"""Maximum number of choices that are shown; the others are summed up in a line."""

MOST_CHARACTERS = 80
"""Characters of a choice that are shown."""

_QUIET = "color:var(--jp-content-font-color2,inherit);font-size:85%"
_BAR = (
    "display:inline-block;height:.7em;border-radius:2px;background:var(--jp-brand-color1,#1976d2)"
)


class _Row(NamedTuple):
    label: str
    probability: float
    chosen: bool


def has_probabilities(result: VisionResult) -> bool:
    """Whether a result is the answer to a question with choices."""
    return bool(result.probabilities)


def plain_lines(result: VisionResult) -> str:
    """Return the probabilities as lines of text, the highest first."""
    rows, rest = _rows(result)
    lines = [f"{_percent(row.probability):>7}  {row.label}" for row in rows]
    return "\n".join([*lines, *([f"{'':>7}  {rest}"] if rest else [])])


def bars_html(result: VisionResult) -> str:
    """Return the probabilities as HTML: a bar for each, the highest first."""
    rows, rest = _rows(result)
    cell = "text-align:left;padding:1px 10px 1px 0;background:none;border:none"
    body = "".join(
        f'<tr style="background:none"><td style="{cell}">{_emphasized(row)}</td>'
        f'<td style="{cell};text-align:right">{_percent(row.probability)}</td>'
        f'<td style="{cell};width:10em"><span style="{_BAR};width:{_width(row.probability)}">'
        "</span></td></tr>"
        for row in rows
    )
    note = f'<div style="{_QUIET}">{escape(rest)}</div>' if rest else ""
    return (
        f'<table aria-label="Probabilities" style="margin:4px 0;border:none">'
        f"<tbody>{body}</tbody></table>{note}"
    )


def markdown_list(result: VisionResult) -> str:
    """Return the probabilities as a Markdown list, the highest first."""
    rows, rest = _rows(result)
    lines = []
    for row in rows:
        label = to_markdown(row.label, guarded=False).strip("\n")
        lines.append(f"- {_percent(row.probability)} {label}")
    return "\n".join([*lines, *([f"- {rest}"] if rest else [])])


def _rows(result: VisionResult) -> tuple[list[_Row], str]:
    """Return the rows to show, and a line about the others."""
    held = result.probabilities or {}
    chosen = result.choice if isinstance(result.choice, tuple) else (result.choice,)
    # As shown: what looks equal stays in the order of the choices, on every machine.
    ordered = sorted(held.items(), key=lambda item: -round(item[1], 3))
    rows = [
        _Row(_label(value), probability, any(value is each for each in chosen))
        for value, probability in ordered
    ]
    others = rows[MOST_SHOWN:]
    if not others:
        return rows, ""
    several = f"{len(others):,} others" if len(others) > 1 else "1 other"
    highest = _percent(others[0].probability)
    return rows[:MOST_SHOWN], f"{several}, each {highest} or less"


def _label(value: object) -> str:
    content = getattr(value, "value", value)
    return one_line(to_plain(str(content)), MOST_CHARACTERS)


def _emphasized(row: _Row) -> str:
    label = escape(row.label)
    return f"<strong>{label}</strong>" if row.chosen else label


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def _width(probability: float) -> str:
    return f"{max(100 * probability, 0.5):.1f}%"
