"""The controls of a question: images, prompt, models, options, Run and Cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from mlx_magic.notebook.panel.state.conversation import MOST_MODELS
from mlx_magic.notebook.panel.state.model_choices import ModelChoice
from mlx_magic.notebook.panel.widgets.controls import button, fold, line, message_html, set_trait
from mlx_magic.notebook.panel.widgets.options_form import OptionsForm

NONE = ""
"""Value of a model menu without a selection."""


class Composer:
    """The controls for the next question; the panel registers their callbacks.

    Attributes
    ----------
    box : ipywidgets.VBox
        The widget to show.
    """

    def __init__(self, tray: widgets.DOMWidget) -> None:
        auto = widgets.Layout(width="auto")
        self.options = OptionsForm()
        style = {"description_width": "initial"}
        self.word = widgets.Combobox(
            description="From the notebook",
            style=style,
            placeholder="a variable, path or URL",
            ensure_option=False,
            layout=widgets.Layout(flex="1 1 14em", width="auto", min_width="0"),
        )
        self.word.add_class("mlxm-word")
        self.add = button("Add", "Enter a variable, path or URL first", disabled=True)
        self.prompt = widgets.Textarea(
            description="Prompt",
            placeholder="What would you like to know?  (Ctrl-Enter or Cmd-Enter runs)",
            rows=3,
            layout=auto,
        )
        self.prompt.add_class("mlxm-prompt")
        menu = {"layout": widgets.Layout(flex="1 1 14em", width="auto", min_width="0")}
        self.model = widgets.Dropdown(description="Model", style=style, **menu)
        self.others = [
            widgets.Dropdown(description=which, options=[("(none)", NONE)], style=style, **menu)
            for which in ("Second", "Third")[: MOST_MODELS - 1]
        ]
        self.compare = widgets.Checkbox(description="Compare models", indent=False, layout=auto)
        self.follow = widgets.Checkbox(
            description="Follow-up",
            value=True,
            indent=False,
            layout=auto,
            tooltip="Send the earlier turns with the question",
        )
        self.run = button("Run", "Write a prompt first", disabled=True, look="primary")
        self.cancel = button("Cancel", "Nothing is running", disabled=True)
        self.new = button("New conversation", "There is nothing to clear", disabled=True)
        self.stop_editing = button(
            "Stop editing", "Discard the edit and restore the previous draft"
        )
        self.stop_editing.layout.display = "none"
        self.hint = widgets.HTML()
        self.hint.add_class("mlxm-hint")
        self.models = line(self.model, self.compare)
        self.more_options = fold("Options", self.options.box)
        self.box = widgets.VBox(
            [
                tray,
                line(self.word, self.add),
                self.prompt,
                self.models,
                line(self.run, self.cancel, self.follow, self.new, self.stop_editing),
                self.hint,
                self.more_options,
            ]
        )
        self.box.add_class("mlxm-composer")
        self.compare.observe(self._comparing, "value")

    @property
    def chosen(self) -> list[str]:
        """The selected models, without duplicates."""
        menus = [self.model, *(self.others if self.compare.value else ())]
        return list(dict.fromkeys(menu.value for menu in menus if menu.value))

    def choose(self, models: Sequence[str]) -> None:
        """Select models, as far as the menus offer them."""
        offered = {value for _, value in self.model.options}
        wanted = [name for name in models if name in offered]
        self.compare.value = len(wanted) > 1
        for menu, name in zip([self.model, *self.others], wanted, strict=False):
            menu.value = name

    def offer(self, choices: Sequence[ModelChoice], default: str) -> None:
        """Set the options of the menus, keeping the selection."""
        options = [(c.label, c.name) for c in choices if c.state != "unusable"]
        names = {name for _, name in options}
        _offer(self.model, options, default if default in names else next(iter(names), None))
        for menu in self.others:
            _offer(menu, [("(none)", NONE), *options], NONE)

    def say(self, text: str, *, problem: bool = False) -> None:
        """Show one line below the buttons."""
        set_trait(self.hint, "value", message_html(text, problem=problem))

    def set_enabled(self, pressed: widgets.Button, why_not: str, tip: str = "") -> None:
        """Enable a button, or disable it with a reason as its tooltip."""
        set_trait(pressed, "disabled", bool(why_not))
        set_trait(pressed, "tooltip", why_not or tip)

    def _comparing(self, _: Any) -> None:
        others = self.others if self.compare.value else []
        self.models.children = (self.model, *others, self.compare)


def _offer(menu: widgets.Dropdown, options: list[tuple[str, str]], default: str | None) -> None:
    if list(menu.options) == options:
        return
    chosen = menu.value
    kept = chosen if chosen in {value for _, value in options} else default
    # Both traits in one message, or the page would show the first model for a moment.
    with menu.hold_sync():
        menu.options = options
        menu.value = kept
