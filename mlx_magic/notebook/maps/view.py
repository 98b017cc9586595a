"""The live view of a map: progress, latest answers, Pause and Cancel."""

from __future__ import annotations

import html
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from mlx_magic.data.mapping.rows import MapRow
from mlx_magic.data.mapping.run import MapTask
from mlx_magic.errors import MlxMagicError
from mlx_magic.notebook.display import formulas, sanitize
from mlx_magic.notebook.display.phase_line import phase_line
from mlx_magic.notebook.maps.terminal_line import progress_words

_MUTED = "color:var(--jp-content-font-color2,#666)"
_INTERVAL = 0.25
"""Seconds between two updates of the numbers."""

_PICTURES_INTERVAL = 1.0
"""Seconds between two updates of the latest answers, each of up to 60 KB."""

THUMBNAIL_SIDE = 96
"""Pixels."""

_LATEST = 4


class MapView:
    """Shows a map with widgets.

    Parameters
    ----------
    task : MapTask
    why_no_click : str
        Why clicks are not received while the cell runs; empty if they are.
    clock : callable
        Seconds, monotonic.

    Attributes
    ----------
    button, pause, resume : ipywidgets.Button
        "Cancel", "Pause" and "Resume". The latter two are separate buttons, as a click may be
        reported twice.
    """

    def __init__(
        self,
        task: MapTask,
        *,
        why_no_click: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import ipywidgets as widgets

        self._task = task
        self._clock = clock
        self._last = self._last_pictures = float("-inf")
        self._line = ""
        self._pictures = _Pictures()
        self._handle: Any = None

        def button(words: str, tooltip: str) -> Any:
            return widgets.Button(
                description=words,
                tooltip=why_no_click or tooltip,
                disabled=bool(why_no_click),
                layout=widgets.Layout(width="auto"),
            )

        self.button = button("Cancel", "Stop, and keep the rows answered so far")
        self.pause = button("Pause", "Ask about no new images until Resume")
        self.resume = button("Resume", "Go on")
        self._bar = widgets.FloatProgress(
            value=0.0, min=0.0, max=1.0, layout=widgets.Layout(width="160px")
        )
        self._status = widgets.HTML()
        self._latest = widgets.HTML(layout=widgets.Layout(width="100%"))
        self._why = widgets.HTML(_status(why_no_click) if why_no_click else "")
        self._head = widgets.HBox(
            self._parts(), layout=widgets.Layout(align_items="center", flex_flow="row wrap")
        )
        self._box = widgets.VBox([self._head, self._latest])

    @property
    def buttons(self) -> list[tuple[Any, Callable[[], None]]]:
        """Its buttons, and what a click does."""
        return [
            (self.button, self._task.cancel),
            (self.pause, self._task.pause),
            (self.resume, self._task.resume),
        ]

    def show(self) -> None:
        """Display the view in the cell that is running."""
        from IPython.display import display

        view = self._box._repr_mimebundle_()
        # It is useless without widgets, and nbval would compare it.
        view.pop("text/plain", None)
        self._handle = display(view, raw=True, display_id=True)

    def update(self) -> None:
        """Show the progress and the latest answers."""
        now = self._clock()
        if now - self._last < _INTERVAL:
            return
        self._last = now
        state = self._task.state
        waiting = self._task.waiting_for
        loading = waiting is not None and waiting.phase in ("queued", "downloading", "loading")
        line = phase_line(waiting) if loading and waiting is not None else progress_words(state)
        if line != self._line:
            self._line = line
            self._status.value = _status(line)
            if state.total:
                self._bar.value = state.done / state.total
        if self._head.children != self._parts():
            self._head.children = self._parts()
        if now - self._last_pictures >= _PICTURES_INTERVAL:
            self._last_pictures = now
            # Made on another thread: an image takes some milliseconds to open.
            self._pictures.make(list(self._task.latest)[-_LATEST:], self._task)
        if (shown := self._pictures.take()) is not None:
            self._latest.value = shown

    def leave(self, *, alone: bool) -> None:
        """Remove the view before the result is shown."""
        from IPython.display import clear_output

        self._head.children = self._head.children[2:]
        for button in (self.button, self.pause, self.resume):
            for widget in (button, button.layout, button.style):
                widget.close()
        if alone:
            clear_output(wait=True)
        elif self._handle is not None:
            # Nothing at all: nbval sees no updates, and compares what a saved notebook has.
            self._handle.update({}, raw=True)

    def close(self) -> None:
        """Close every widget, so that none stays in the kernel."""
        for widget in (self._bar, self._status, self._latest, self._why, self._head, self._box):
            style = getattr(widget, "style", None)
            for part in (widget, widget.layout, *([style] if style is not None else [])):
                part.close()

    def _parts(self) -> tuple[Any, ...]:
        middle = self.resume if self._task.paused else self.pause
        return (self.button, middle, self._bar, self._status, self._why)


class _Pictures:
    """Renders the latest rows on a thread, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = False
        self._made: str | None = None
        self._shown: list[MapRow] = []

    def make(self, rows: list[MapRow], task: MapTask) -> None:
        """Render rows soon, unless they are shown or others are being rendered."""
        with self._lock:
            if self._busy or not rows or rows == self._shown:
                return
            self._busy, self._shown = True, rows
        settings = task.plan.settings

        def work() -> None:
            try:
                made = latest_html(rows, settings.max_pixels, settings.normalize)
            except Exception:  # a view must not end a map
                made = ""
            with self._lock:
                self._made, self._busy = made, False

        threading.Thread(target=work, name="mlx-magic-map-view", daemon=True).start()

    def take(self) -> str | None:
        """Return what was rendered since the last call."""
        with self._lock:
            made, self._made = self._made, None
            return made


def latest_html(rows: list[MapRow], max_pixels: int | None, normalize: bool) -> str:
    """Return thumbnails with short answers, beside each other."""
    cards = "".join(card_html(row, max_pixels, normalize, 120) for row in rows)
    return (
        f'<div class="{formulas.UNSET}" style="display:flex;flex-wrap:wrap;gap:12px;'
        f'overflow:auto">{cards}</div>'
    )


def card_html(row: MapRow, max_pixels: int | None, normalize: bool, most: int) -> str:
    """Return a thumbnail with the source, the question and the answer below it."""
    source = html.escape(sanitize.to_plain(row.image.source))
    question = f"<b>{html.escape(sanitize.to_plain(row.question))}</b> " if row.question else ""
    return (
        f'<figure style="margin:0;width:160px;overflow-wrap:anywhere;font-size:85%">'
        f"{thumbnail_html(row, max_pixels, normalize)}"
        f'<figcaption><span style="{_MUTED}">{source}</span><br>{question}'
        f"{answer_html(row, most)}</figcaption></figure>"
    )


def answer_html(row: MapRow, most: int) -> str:
    """Return the answer or the error of a row as one short line."""
    if row.result is None:
        text = html.escape(_cut(str(row.error), most))
        return f'<span style="color:var(--jp-error-color1,#b00)">{text}</span>'
    return html.escape(_cut(row.result.text, most)) or "<em>(no text)</em>"


def thumbnail_html(row: MapRow, max_pixels: int | None, normalize: bool) -> str:
    """Return the image of a row, opened again; words where it cannot be."""
    try:
        image, changed = row.image.open(max_pixels=max_pixels, normalize=normalize)
    except MlxMagicError:
        return f'<div style="{_MUTED}">(no picture)</div>'
    thumbnail = image.thumbnail(THUMBNAIL_SIDE)
    data = b64encode(thumbnail.data).decode("ascii")
    label = html.escape(sanitize.to_plain(row.image.source), quote=True)
    note = f'<div style="{_MUTED}">changed since</div>' if changed and row.image.digest else ""
    return (
        f'<img src="data:{thumbnail.mime};base64,{data}" alt="{label}" '
        f'width="{thumbnail.width}" height="{thumbnail.height}" style="max-width:100%">{note}'
    )


def _cut(text: str, most: int) -> str:
    line = " ".join(sanitize.to_plain(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _status(line: str) -> str:
    text = html.escape(sanitize.to_plain(line))
    return f'<span class="{formulas.UNSET}" role="status" style="{_MUTED}">{text}</span>'
