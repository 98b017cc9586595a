"""``%vision list`` and ``%vision status`` as text and as HTML."""

from __future__ import annotations

import html
from dataclasses import dataclass

from mlx_magic.inference.model_info import ModelInfo
from mlx_magic.inference.pool import ModelPool
from mlx_magic.inference.request import DEMO
from mlx_magic.inference.reuse import Reuse
from mlx_magic.inference.session import Session
from mlx_magic.inference.work import amount
from mlx_magic.notebook import pool_lines
from mlx_magic.notebook.phases import phase_line

_CELL = "text-align:left;padding:2px 12px 2px 0"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings. Shows itself.

    Attributes
    ----------
    headings : tuple of str
    rows : tuple of tuple of str
    note : str
        A line below.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __repr__(self) -> str:
        lines = [self.headings, *self.rows] if any(self.headings) else [*self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = [
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *([self.note] if self.note else [])])

    def _repr_html_(self) -> str:
        head = "".join(f'<th style="{_CELL}">{html.escape(h)}</th>' for h in self.headings)
        body = "".join(
            "<tr>" + "".join(f'<td style="{_CELL}">{html.escape(w)}</td>' for w in row) + "</tr>"
            for row in self.rows
        )
        thead = f"<thead><tr>{head}</tr></thead>" if any(self.headings) else ""
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"<table>{thead}<tbody>{body}</tbody></table>{note}"


class ModelTable:
    """``%vision list``."""

    @staticmethod
    def of(session: Session) -> Table:
        """Return the models at hand: loaded ones, the bundled one, aliases."""
        loaded = pool_rows(session.pool)
        names = {name for model in session.pool for name in model.names}
        others = [
            (name, "bundled" if name == DEMO else "alias", "", "", "", "not loaded")
            for name in (DEMO, *session.aliases)
            if name not in names
        ]
        # Without a budget of one's own a list is the same on every machine.
        note = "" if session.pool.budget is None else pool_lines.room(session.pool) + "."
        return Table(_MODEL_HEADINGS, (*loaded, *others), note)


class StatusTable:
    """``%vision status``."""

    @staticmethod
    def of(session: Session, *, default: str | None) -> Table:
        """Return what is loaded, running and used, and on what device."""
        rows: list[tuple[str, str]] = [
            ("default model", default or f"{DEMO} (bundled)"),
            ("loaded", "; ".join(map(_named, session.pool)) or "nothing"),
            ("room", pool_lines.room(session.pool)),
            *_unloaded(session.pool),
            ("running", "; ".join(phase_line(w.progress) for w in session.running) or "nothing"),
            ("reused", _reused(session.pool.reuse)),
            *session.device(),
        ]
        return Table(("", ""), tuple(rows), "%vision? lists the commands, %%vision? the options.")


def _named(model: ModelInfo) -> str:
    state = pool_lines.state(model)
    return model.name if state == "loaded" else f"{model.name} ({state.removeprefix('loaded, ')})"


def _unloaded(pool: ModelPool) -> list[tuple[str, str]]:
    """Say what has left by itself lately."""
    gone = [str(model) for model in pool.unloaded if model.why != "asked"]
    return [("unloaded", "; ".join(gone[-3:]))] if gone else []


def _reused(reuse: Reuse) -> str:
    """Say how much was reused, and what that takes."""
    parts = [
        f"{hits} of {hits + misses} {what}"
        for hits, misses, what in (
            (reuse.picture_hits, reuse.picture_misses, "pictures"),
            (reuse.prefix_hits, reuse.prefix_misses, "prompts"),
        )
        if hits + misses
    ]
    kept = f"{amount(reuse.nbytes)} kept of {amount(reuse.limit_bytes)}"
    return f"{', '.join(parts)}; {kept}" if parts else "nothing yet"


_MODEL_HEADINGS = ("model", "kind", "architecture", "quantised", "size", "state")


def pool_rows(pool: ModelPool) -> tuple[tuple[str, ...], ...]:
    """Return a row for each model in memory."""
    return tuple(
        (
            ", ".join(m.names),
            m.kind,
            m.model_type,
            m.quantization or "no",
            amount(m.nbytes),
            pool_lines.state(m),
        )
        for m in pool
    )


def pool_table(pool: ModelPool) -> Table:
    """Return the pool as a table."""
    room = pool_lines.room(pool) + "."
    note = room if len(pool) else f"No model is loaded; {room}"
    return Table(_MODEL_HEADINGS, pool_rows(pool), note)
