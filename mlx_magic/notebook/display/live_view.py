"""The live view of a running cell: thumbnails, phase, streamed text, Cancel button."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from mlx_magic.engine.generation import Generation
from mlx_magic.engine.task import Task
from mlx_magic.notebook.display import formulas, render, sanitize, terminal
from mlx_magic.notebook.display.live_text import Growth, LiveText
from mlx_magic.notebook.display.phase_line import phase_line
from mlx_magic.notebook.display.throttle import Throttle

_MUTED = "color:var(--jp-content-font-color2,#666)"
_SIZE = "font-size:var(--jp-content-font-size1,14px);line-height:var(--jp-content-line-height,1.6)"
_BLOCK = f"overflow-wrap:anywhere;overflow:auto;{_SIZE}"
_TEXT = f"white-space:pre-wrap;{_BLOCK}"


MOST_CHARACTERS = 2_000
"""Maximum number of characters that one update adds. Each block is a widget: a megabyte at once
would be two thousand widgets, and keep the page busy for longer than the answer takes."""


_DIM, _NOT_DIM = "\x1b[2m", "\x1b[22m"


class View(Protocol):
    """The view of a running task."""

    def show(self) -> None:
        """Show the view."""

    def update(self) -> None:
        """Show new text and progress; called often, on the thread that runs cells."""

    def leave(self, *, alone: bool) -> None:
        """Remove the view before the result is shown."""

    def close(self) -> None:
        """Release all widgets."""


class LiveWidgets(View, Protocol):
    """A view with buttons."""

    @property
    def buttons(self) -> list[tuple[Any, Callable[[], None]]]:
        """Its buttons, and what a click does; may be called twice for one click."""


class WidgetView:
    """Shows a generation or a load with widgets.

    Parameters
    ----------
    task : Generation or Load
    why_no_click : str
        Why clicks are not received while the cell runs; empty if they are.
    clock : callable
        Seconds, monotonic.

    Attributes
    ----------
    button : ipywidgets.Button
        Its description is "Cancel", so that any client of the kernel can find and press it.
    """

    def __init__(
        self,
        task: Task[Any],
        *,
        why_no_click: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import ipywidgets as widgets

        self._widgets = widgets
        self._task = task
        progress = task.progress
        self._live = LiveText(
            clock,
            Throttle(clock),
            most=MOST_CHARACTERS,
            line=phase_line(progress),
            phase=progress.phase,
        )
        self._thinking = LiveText(clock, self._live.throttle, most=MOST_CHARACTERS, line="")
        self._thumbnails: Any = None
        self._fold: Any = None
        self._handle: Any = None
        self.button = widgets.Button(
            description="Cancel",
            tooltip=why_no_click or "Stop, and keep the text written so far",
            disabled=bool(why_no_click),
            layout=widgets.Layout(width="auto"),
        )
        self._tail = widgets.HTML()
        # Shared by all: each own layout and style would open two more comms (1 ms of the GIL).
        self._shared_style = {"layout": self._tail.layout, "style": self._tail.style}
        self._status = widgets.HTML(_status(self._live.line), **self._shared_style)
        bar = [self.button, self._status]
        if why_no_click:
            bar.append(widgets.HTML(_status(why_no_click), **self._shared_style))
        self._text = widgets.VBox([self._tail])
        self._bar = widgets.HBox(bar, layout=widgets.Layout(align_items="center"))
        # The button is at the top, so that it does not move while the text grows.
        self._box = widgets.VBox([self._bar, self._text], layout=self._text.layout)

    @property
    def buttons(self) -> list[tuple[Any, Callable[[], None]]]:
        """The Cancel button. See `LiveWidgets`."""
        return [(self.button, self._task.cancel)]

    def show(self) -> None:
        """Display the view in the cell that is running."""
        from IPython.display import display

        # Without text/plain: it is useless without widgets, and nbval would compare it.
        view = self._box._repr_mimebundle_()
        view.pop("text/plain", None)
        self._handle = display(view, raw=True, display_id=True)

    def leave(self, *, alone: bool) -> None:
        """Remove the view before the result is shown.

        Parameters
        ----------
        alone : bool
            Whether this view is the only output of the cell.
        """
        from IPython.display import clear_output

        # Clients must not find a button that no longer cancels anything.
        self._bar.children = self._bar.children[1:]
        for widget in (self.button, self.button.layout, self.button.style):
            widget.close()
        if alone:
            clear_output(wait=True)
        elif self._handle is not None:
            self._handle.update({"text/plain": ""}, raw=True)

    def update(self) -> None:
        """Show new text and progress, throttled by time and bytes."""
        tokens, text, thoughts = 0, "", ""
        if isinstance(self._task, Generation):
            snapshot = self._task.snapshot()
            tokens, text = snapshot.completion_tokens, snapshot.text
            thoughts = snapshot.reasoning
            self._show_thumbnails(self._task)
        line = self._live.new_line(self._task.progress)
        if line is not None:
            self._status.value = _status(line)
        if len(text) < self._live.shown:
            self._take_text_back()
        growth, column = self._live.grow(text, tokens), self._text
        if growth is None and thoughts:
            growth, column = self._thinking.grow(thoughts, tokens), self._thoughts()
        if growth is not None:
            self._live.throttle.sent(*self._add(growth, column))

    def close(self) -> None:
        """Close every widget, so that none stays in the kernel."""
        fold = [] if self._fold is None else [*self._fold.children, *self._thoughts().children]
        blocks = [*self._text.children, *self._box.children, *self._bar.children, *fold]
        parts = [w for parent in (self._box, *blocks) for w in (parent, parent.layout)]
        styles = [w.style for w in blocks if hasattr(w, "style")]
        for widget in {id(w): w for w in (*parts, *styles)}.values():
            widget.close()

    def _show_thumbnails(self, generation: Generation) -> None:
        if self._thumbnails is None and generation.images:
            self._thumbnails = self._widgets.HTML(
                render.thumbnails_html(generation.images), **self._shared_style
            )
            self._arrange()

    def _thoughts(self) -> Any:
        """Return the column of the thoughts; folded, and added to the view by the first call."""
        if self._fold is None:
            tail = self._widgets.HTML(**self._shared_style)
            column = self._widgets.VBox([tail], layout=self._tail.layout)
            self._fold = self._widgets.Accordion(
                [column], titles=("Thinking",), selected_index=None, layout=self._tail.layout
            )
            self._arrange()
        return self._fold.children[0]

    def _arrange(self) -> None:
        parts = (self._bar, self._thumbnails, self._fold, self._text)
        self._box.children = tuple(part for part in parts if part is not None)

    def _take_text_back(self) -> None:
        """Remove all text: it has turned out to be thoughts."""
        self._live.restart()
        *blocks, _ = self._text.children
        self._text.children = (self._tail,)
        self._tail.value = ""
        for block in blocks:
            block.close()

    def _add(self, growth: Growth, column: Any) -> list[int]:
        """Show new text in a column; return the bytes of each message."""
        tail = column.children[-1]
        sizes = []
        if growth.blocks:
            blocks = [
                self._widgets.HTML(_block(*block), **self._shared_style) for block in growth.blocks
            ]
            children = (*column.children[:-1], *blocks, tail)
            # Each widget sends all its traits when it opens, and one message when it closes.
            sizes += [len(b.value) + 1_500 for b in blocks] + [45 * len(children)]
            column.children = children
        tail.value = _plain(growth.tail)
        return [*sizes, len(tail.value)]


def import_libraries() -> None:
    """Import the libraries of `WidgetView` and of results; meant for another thread."""
    import ipywidgets  # noqa: F401

    sanitize.to_html("")


class TerminalView:
    """Streams the text to standard output, for IPython in a terminal.

    Before the first text the phase is shown on standard error, if that is a terminal. Thoughts
    are shown dim if standard output is one, else not at all.
    """

    def __init__(self, task: Task[Any]) -> None:
        self._task = task
        self._shown = 0
        self._thoughts_shown = 0
        self._phase = ""

    def show(self) -> None:
        """Do nothing: `update` writes."""

    def update(self) -> None:
        """Write new text."""
        text = ""
        if isinstance(self._task, Generation):
            snapshot = self._task.snapshot()
            text = snapshot.text
            self._write_thoughts(snapshot.reasoning)
        if len(text) > self._shown:
            self._write_phase("")
            if self._thoughts_shown and not self._shown:
                terminal.write("\n\n")
            terminal.write(sanitize.to_plain(text[self._shown :]))
            self._shown = len(text)
        elif not self._shown and not self._thoughts_shown:
            self._write_phase(phase_line(self._task.progress))

    def leave(self, *, alone: bool) -> None:
        """Write the rest and end the line."""
        self.update()
        self._write_phase("")
        if self._shown or self._thoughts_shown:
            terminal.write("\n")

    def close(self) -> None:
        """Do nothing: there are no widgets."""

    def _write_thoughts(self, thoughts: str) -> None:
        new = thoughts[self._thoughts_shown :]
        # Text that is shown already may turn out to be thoughts: it is not shown twice.
        if new and not self._shown and terminal.is_terminal():
            self._write_phase("")
            terminal.write(f"{_DIM}{sanitize.to_plain(new)}{_NOT_DIM}")
            self._thoughts_shown = len(thoughts)

    def _write_phase(self, line: str) -> None:
        if line != self._phase and sys.stderr is not None and sys.stderr.isatty():
            terminal.write(f"\r\x1b[K{sanitize.to_plain(line)}", sys.stderr)
            self._phase = line


def _status(line: str) -> str:
    text = html.escape(sanitize.to_plain(line))
    return f'<span class="{formulas.UNSET}" role="status" style="{_MUTED}">{text}</span>'


def _plain(text: str) -> str:
    if not text:
        return ""
    plain = html.escape(sanitize.to_plain(text))
    return f'<div class="{formulas.UNSET}" style="{_TEXT}">{plain}</div>'


def _block(text: str, whole: bool) -> str:
    if not whole:
        return _plain(text.rstrip("\n"))
    shown = sanitize.to_html(text)
    return f'<div class="{formulas.UNSET}" style="{_BLOCK}">{shown}</div>'
