"""Small widgets of the panel's sections, and errors of their callbacks as a line on the panel."""

from __future__ import annotations

import contextlib
import html
import logging
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as widgets

from mlx_magic.errors import MlxMagicError
from mlx_magic.formatting import short_label
from mlx_magic.notebook.display import formulas, sanitize


def set_trait(widget: Any, trait: str, value: Any) -> None:
    """Set a trait only if its value differs, so that nothing else is sent."""
    if getattr(widget, trait) != value:
        setattr(widget, trait, value)


def button(text: str, tip: str, *, disabled: bool = False, look: str = "") -> widgets.Button:
    """Return a button as wide as its text.

    Parameters
    ----------
    text : str
    tip : str
        Tooltip: what the button does, or why it is disabled.
    disabled : bool
    look : str
        ``"primary"`` or ``""``.
    """
    return widgets.Button(
        description=text,
        tooltip=tip,
        disabled=disabled,
        button_style=look,
        layout=widgets.Layout(width="auto"),
    )


def line(*children: widgets.Widget) -> widgets.HBox:
    """Return widgets in a row that wraps if it is narrow."""
    box = widgets.HBox(children)
    box.add_class("mlxm-line")
    return box


def fold(title: str, content: widgets.DOMWidget, *, opened: bool = False) -> widgets.VBox:
    """Return a section below a heading that opens and closes it.

    Not an Accordion of ipywidgets, whose headings are not reachable by keyboard. CSS alone folds
    the section, so that it also works while a cell runs.
    """
    heading = widgets.ToggleButton(
        description=title,
        value=opened,
        tooltip=f"Show or hide: {title}",
        layout=widgets.Layout(width="auto"),
    )
    heading.add_class("mlxm-fold")
    content.add_class("mlxm-folded")
    return widgets.VBox([heading, content])


def message_html(text: str, *, problem: bool = False) -> str:
    """Return a message as HTML that a screen reader announces."""
    if not text:
        return ""
    role, look = ("alert", "mlxm-problem") if problem else ("status", "mlxm-quiet")
    plain = html.escape(sanitize.to_plain(text))
    return f'<div role="{role}" class="{look} {formulas.UNSET}">{plain}</div>'


_log = logging.getLogger(__name__)
_LONGEST = 1_000


@contextlib.contextmanager
def guarded(say: Callable[[str], None]) -> Iterator[None]:
    """Report exceptions as one line.

    Parameters
    ----------
    say : callable
        Shows the line.
    """
    try:
        yield
    except MlxMagicError as error:
        say(short_label(" ".join(str(error).split()), _LONGEST))
    except Exception as error:
        # A bug, not a user error: log the traceback.
        _log.exception("A control of the panel failed.")
        what = short_label(f"{type(error).__name__}: {error}", _LONGEST)
        say(f"That failed: {what}. The kernel's log has more.")


class Guarded:
    """Proxy whose method calls are guarded.

    Parameters
    ----------
    events : object
        Object that handles the calls.
    say : callable
        Shows an error.
    """

    def __init__(self, events: object, say: Callable[[str], None]) -> None:
        self._events = events
        self._say = say

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._events, name)

        def call(*args: Any, **kwargs: Any) -> None:
            with guarded(self._say):
                method(*args, **kwargs)

        return call
