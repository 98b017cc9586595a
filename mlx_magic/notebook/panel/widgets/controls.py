"""Small widgets and helpers of the panel's sections."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets

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
