"""The controls for a question's options."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from mlx_magic.engine.request import DEFAULT_MAX_TOKENS, Sampling
from mlx_magic.errors import RequestError
from mlx_magic.notebook.panel.state.conversation import Options

_SIZES = (
    ("original size", 0),
    ("at most 1 megapixel", 1_000_000),
    ("at most 0.25 megapixels", 250_000),
)
_DEFAULT_SAMPLING = "Use the model's default sampling"


class OptionsForm:
    """System prompt, length, sampling and image size.

    Attributes
    ----------
    box : ipywidgets.VBox
        The widget to show.
    """

    def __init__(self) -> None:
        wide = {"layout": widgets.Layout(width="auto"), "style": {"description_width": "9em"}}
        self.system = widgets.Textarea(
            description="System prompt", rows=2, placeholder="How the model should behave", **wide
        )
        self.max_tokens = widgets.BoundedIntText(
            description="Max tokens",
            value=DEFAULT_MAX_TOKENS,
            min=1,
            max=1_000_000,
            tooltip="Maximum length of an answer",
            **wide,
        )
        self.default_sampling = widgets.Checkbox(
            description=_DEFAULT_SAMPLING,
            value=True,
            indent=False,
            layout=widgets.Layout(width="auto"),
            tooltip="From the checkpoint's generation_config.json",
        )
        self.temperature = widgets.BoundedFloatText(
            description="Temperature", value=0.0, min=0.0, max=2.0, step=0.05, **wide
        )
        self.top_p = widgets.BoundedFloatText(
            description="Top p", value=1.0, min=0.05, max=1.0, step=0.05, **wide
        )
        self.top_k = widgets.BoundedIntText(
            description="Top k", value=0, min=0, max=100_000, tooltip="0 is off", **wide
        )
        self.seed = widgets.Text(
            description="Seed", placeholder="none (sampled answers vary)", **wide
        )
        self.max_pixels = widgets.Dropdown(description="Pictures", options=_SIZES, **wide)
        self.default_sampling.observe(self._show_whether_off, "value")
        self._show_whether_off()
        self.box = widgets.VBox(
            [
                self.system,
                self.max_tokens,
                self.max_pixels,
                self.default_sampling,
                self.temperature,
                self.top_p,
                self.top_k,
                self.seed,
            ]
        )
        self.box.add_class("mlxm-options")

    def read(self) -> Options:
        """Return the values of the controls.

        Raises
        ------
        RequestError
            If the seed is not a whole number.
        """
        text = self.seed.value.strip()
        if text and not text.isdecimal():
            raise RequestError(
                f"The seed is {text!r}: use a whole number, or leave it empty.", option="seed"
            )
        default_sampling = self.default_sampling.value
        sampling = Sampling(
            max_tokens=self.max_tokens.value,
            temperature=None if default_sampling else self.temperature.value,
            top_p=None if default_sampling or self.top_p.value >= 1 else self.top_p.value,
            top_k=None if default_sampling or not self.top_k.value else self.top_k.value,
            seed=int(text) if text else None,
        )
        return Options(self.system.value.strip() or None, sampling, self.max_pixels.value or None)

    def write(self, options: Options) -> None:
        """Set the controls to the options of a question."""
        sampling = options.sampling
        self.system.value = options.system or ""
        self.max_tokens.value = sampling.max_tokens
        self.default_sampling.value = (sampling.temperature, sampling.top_p, sampling.top_k) == (
            None,
        ) * 3
        self.temperature.value = sampling.temperature or 0.0
        self.top_p.value = 1.0 if sampling.top_p is None else sampling.top_p
        self.top_k.value = sampling.top_k or 0
        self.seed.value = "" if sampling.seed is None else str(sampling.seed)
        known = [size for _, size in _SIZES]
        self.max_pixels.value = options.max_pixels if options.max_pixels in known else 0

    def _show_whether_off(self, _: Any = None) -> None:
        why = f"Off while “{_DEFAULT_SAMPLING}” is on" if self.default_sampling.value else ""
        for control in (self.temperature, self.top_p, self.top_k):
            control.disabled = self.default_sampling.value
            control.tooltip = why
