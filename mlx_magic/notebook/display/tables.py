"""``%vision list`` and ``%vision status`` as text and as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.engine.request import DEMO
from mlx_magic.formatting import amount, shown
from mlx_magic.model_pool.model_info import ModelInfo
from mlx_magic.model_pool.pool import ModelPool, fits
from mlx_magic.models.catalog.alias_file import AliasTarget
from mlx_magic.models.catalog.local_models import ModelOnDisk
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.notebook.display import formulas, pool_messages
from mlx_magic.notebook.display.phase_line import phase_line
from mlx_magic.session import Session

_CELL = "text-align:left;padding:2px 12px 2px 0"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with headings; has text and HTML representations.

    Attributes
    ----------
    headings : tuple of str
    rows : tuple of tuple of str
    note : str
        Lines below the table.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @property
    def _printable(self) -> list[tuple[str, ...]]:
        """Headings and rows, with control characters escaped."""
        return [tuple(shown(word, 1000) for word in row) for row in (self.headings, *self.rows)]

    @property
    def _note(self) -> str:
        return "\n".join(shown(line, 1000) for line in self.note.splitlines())

    def __repr__(self) -> str:
        lines = self._printable if any(self.headings) else self._printable[1:]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = [
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *([self._note] if self.note else [])])

    def _repr_html_(self) -> str:
        headings, *rows = self._printable
        head = "".join(f'<th style="{_CELL}">{html.escape(h)}</th>' for h in headings)
        body = "".join(
            "<tr>" + "".join(f'<td style="{_CELL}">{html.escape(w)}</td>' for w in row) + "</tr>"
            for row in rows
        )
        thead = f"<thead><tr>{head}</tr></thead>" if any(self.headings) else ""
        note = f"<p>{html.escape(self._note)}</p>" if self.note else ""
        return (
            f'<div class="{formulas.UNSET}" style="overflow:auto">'
            f"<table>{thead}<tbody>{body}</tbody></table>{note}</div>"
        )


class ModelTable:
    """``%vision list``."""

    @staticmethod
    def of(session: Session) -> Table:
        """Return models in memory and on disk, and aliases of models that are in neither.

        Reads files, so do not call it on an event loop.
        """
        loaded = pool_rows(session.pool)
        paths = {m.path for m in session.pool if m.adapter is None}
        names = {name for m in session.pool for name in m.names}
        targets = session.names.targets
        rows: list[tuple[str, ...]] = []
        for model in session.on_disk():
            aliases = [name for name, to in session.names.plain_aliases.items() if to == model.name]
            if model.name not in names and str(model.path) not in paths:
                rows.append(_disk_row(model, aliases, session.pool))
            names |= {model.name, *aliases}
        rows += [
            (name, "", "", "", "", _alias_state(to))
            for name, to in targets.items()
            if name not in names
        ]
        problems = session.names.file.problems if session.names.file is not None else ()
        # The memory budget is shown only if one was set.
        memory_use = (
            ()
            if session.pool.budget is None
            else ("Memory budget: " + pool_messages.memory_use(session.pool) + ".",)
        )
        return Table(_MODEL_HEADINGS, (*loaded, *rows), "\n".join((*memory_use, *problems)))


def _alias_state(target: AliasTarget) -> str:
    """Return the state of an alias whose target is not listed as a model on disk."""
    if target.adapter is not None:
        return f"{target.model} with adapter {PurePath(target.adapter).name}"
    return f"not on this disk: {target.model}"


def _disk_row(model: ModelOnDisk, aliases: Sequence[str], pool: ModelPool) -> tuple[str, ...]:
    """Return the row of a model that is not in memory."""
    state = "bundled" if model.name == DEMO else "on disk"
    fits_now = fits(pool, model.needed)
    if model.partly:
        state = "partly downloaded: load it to fetch the rest"
    elif model.problem:
        state = f"unusable: {model.problem}"
    elif fits_now is not None:
        state += ", fits" if fits_now else ", does not fit now"
    return (
        ", ".join([model.name, *aliases]),
        model.kind,
        model.model_type,
        (model.quantization or "no") if model.kind else "",
        amount(model.nbytes) if model.nbytes else "",
        state,
    )


class SummaryTable:
    """``%vision models``."""

    @staticmethod
    def of(session: Session, name: str) -> Table:
        """Return a summary of a model. May query the Hub, so do not call it on an event loop."""
        found = session.summary(name)
        fits_now = fits(session.pool, found.needed)
        rows = [
            ("model", name),
            ("location", found.place),
            ("kind", found.kind),
            ("architecture", found.model_type),
            ("quantized", found.quantization or "no"),
            ("size", amount(found.nbytes) if found.nbytes else "unknown"),
            ("memory", {True: "fits now", False: "does not fit now", None: "unknown"}[fits_now]),
            ("context", f"{found.context:,} tokens" if found.context else "unknown"),
        ]
        if found.image_tokens:
            rows.append(("image", f"{found.image_tokens:,} tokens per image, or per tile of it"))
        rows.append(("concurrent requests", _batching(found.together)))
        if found.wants_code:
            rows.append(("remote code", "; ".join(found.wants_code)))
        if found.problem:
            rows.append(("problem", found.problem))
        return Table(("", ""), tuple(rows))


class StatusTable:
    """``%vision status``."""

    @staticmethod
    def of(session: Session, *, default: str | None) -> Table:
        """Return loaded models, running requests, memory and device."""
        rows: list[tuple[str, str]] = [
            ("default model", default or f"{DEMO} (bundled)"),
            ("loaded", "; ".join(map(_loaded_name, session.pool)) or "nothing"),
            ("memory budget", pool_messages.memory_use(session.pool)),
            *_eviction_rows(session.pool),
            ("running", "; ".join(phase_line(w.progress) for w in session.running) or "nothing"),
            *_batching_rows(session.pool),
            *_off_rows(session.pool),
            ("cache hits", _cache_hits(session.pool.reuse)),
            *session.device(),
        ]
        return Table(("", ""), tuple(rows), "%vision? lists the commands, %%vision? the options.")


def _loaded_name(model: ModelInfo) -> str:
    state = pool_messages.state(model)
    return model.name if state == "loaded" else f"{model.name} ({state.removeprefix('loaded, ')})"


def _batching(verdict: Verdict | None) -> str:
    """Return whether a model that is not loaded will be batched."""
    return "known once it is loaded" if verdict is None else str(verdict)


def _batching_rows(pool: ModelPool) -> list[tuple[str, str]]:
    """Return whether each loaded model is batched."""
    words = [f"{model.name} {Verdict(model.together, True, model.why_apart)}" for model in pool]
    return [("concurrent requests", "; ".join(words))] if words else []


def _off_rows(pool: ModelPool) -> list[tuple[str, str]]:
    """Return what does not work with the installed versions of the libraries."""
    return [("switched off" if at == 0 else "", line) for at, line in enumerate(pool.switched_off)]


def _eviction_rows(pool: ModelPool) -> list[tuple[str, str]]:
    """Return the most recent unloads that were not requested."""
    evicted = [str(model) for model in pool.unloaded if model.why != "asked"]
    return [("unloaded", "; ".join(evicted[-3:]))] if evicted else []


def _cache_hits(reuse: CacheStats) -> str:
    """Return the hits of the image and prefix caches, and their memory."""
    parts = [
        f"{hits} of {hits + misses} {what}"
        for hits, misses, what in (
            (reuse.image_hits, reuse.image_misses, "images"),
            (reuse.prefix_hits, reuse.prefix_misses, "prompts"),
        )
        if hits + misses
    ]
    kept = f"{amount(reuse.nbytes)} of {amount(reuse.limit_bytes)} used"
    return f"{', '.join(parts)}; {kept}" if parts else "none yet"


_MODEL_HEADINGS = ("model", "kind", "architecture", "quantized", "size", "state")


def pool_rows(pool: ModelPool) -> tuple[tuple[str, ...], ...]:
    """Return a row for each model in memory."""
    return tuple(
        (
            ", ".join(m.names),
            m.kind,
            m.model_type,
            m.quantization or "no",
            amount(m.nbytes),
            pool_messages.state(m),
        )
        for m in pool
    )


def pool_table(pool: ModelPool) -> Table:
    """Return the pool as a table."""
    memory_use = "Memory budget: " + pool_messages.memory_use(pool) + "."
    note = memory_use if len(pool) else f"No model is loaded. {memory_use}"
    return Table(_MODEL_HEADINGS, pool_rows(pool), note)
