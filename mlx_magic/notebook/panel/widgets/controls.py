"""Small pieces that the panel's sections are made of."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets

from mlx_magic.notebook.display import formulas, sanitize


def set_trait(widget: Any, trait: str, value: Any) -> None:
    """Set a trait that has changed; nothing is compared or sent where it has not."""
    if getattr(widget, trait) != value:
        setattr(widget, trait, value)


def button(text: str, tip: str, *, disabled: bool = False, look: str = "") -> widgets.Button:
    """Return a button as wide as its text.

    Parameters
    ----------
    text : str
    tip : str
        What it does; where it is disabled, why.
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
    """Return widgets side by side; they wrap where it is narrow."""
    box = widgets.HBox(children)
    box.add_class("mlxm-line")
    return box


def fold(title: str, content: widgets.DOMWidget, *, opened: bool = False) -> widgets.VBox:
    """Return a section below a heading that opens and closes it.

    Not ipywidgets' Accordion: no key reaches its headings. The page folds by its style alone,
    so that it does so while a cell runs, too.
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
    """Return one line as HTML that a screen reader speaks."""
    if not text:
        return ""
    role, look = ("alert", "mlxm-problem") if problem else ("status", "mlxm-quiet")
    plain = html.escape(sanitize.to_plain(text))
    return f'<div role="{role}" class="{look} {formulas.UNSET}">{plain}</div>'
