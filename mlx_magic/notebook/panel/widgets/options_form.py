"""The controls for a question's options."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.expressions import one_line
from mlx_magic.options import Settings

_SIZES = {0: "original size", 1_000_000: "at most 1 megapixel", 250_000: "at most 0.25 megapixels"}
_UNSET = {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
"""What the controls of sampling show for None."""
_DEFAULT_SAMPLING = "Use the model's default sampling"


class OptionsForm:
    """System prompt, length, sampling and image size; other options are kept and shown.

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
            value=Settings().max_tokens,
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
        self.schema = widgets.Text(
            description="Schema",
            placeholder="shape: str, count: int, or a class",
            tooltip="The shape of the answer: fields, or a class of the notebook",
            **wide,
        )
        self.max_pixels = widgets.Dropdown(description="Images", options=_sizes(0), **wide)
        self.others = widgets.Label()
        self.others.layout.display = "none"
        self._settings = Settings()
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
                self.schema,
                self.others,
            ]
        )
        self.box.add_class("mlxm-options")

    @property
    def normalize(self) -> bool:
        """Whether images are opened with `normalize`."""
        return bool(self._settings.normalize)

    def read(self) -> Settings:
        """Return the settings of the next question.

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
        return self._settings.replaced(
            {
                "system": self.system.value.strip() or None,
                "max_tokens": self.max_tokens.value,
                **self._sampling(),
                "seed": int(text) if text else None,
                "max_pixels": self.max_pixels.value or None,
                "schema": self.schema.value.strip() or None,
            }
        )

    def _sampling(self) -> dict[str, float | None]:
        """Return temperature, top-p and top-k; None is the checkpoint's default."""
        if self.default_sampling.value:
            return dict.fromkeys(_UNSET)
        values = {
            "temperature": self.temperature.value,
            "top_p": None if self.top_p.value >= 1 else self.top_p.value,
            "top_k": self.top_k.value or None,
        }
        # A control shows the same number for "off" and for the checkpoint's default: where it was
        # not changed, the setting that it was written from is the one that holds.
        written = {name: getattr(self._settings, name) for name in _UNSET}
        if any(value is not None for value in written.values()):
            for name, value in written.items():
                shown = _UNSET[name] if value is None else value
                if getattr(self, name).value == shown:
                    values[name] = value
        return values

    def write(self, settings: Settings) -> None:
        """Set the controls; options without a control are kept for the next questions."""
        # Each answer of a panel has a model of its own, and is shown as Markdown.
        self._settings = settings = settings.replaced(
            {"model": None, "output": None, "format": "markdown", "show": True}
        )
        self.system.value = settings.system or ""
        self.schema.value = settings.schema or ""
        _put(self.max_tokens, settings.max_tokens)
        chosen = {name: getattr(settings, name) for name in _UNSET}
        self.default_sampling.value = all(value is None for value in chosen.values())
        for name, value in chosen.items():
            control = getattr(self, name)
            _put(control, _UNSET[name] if value is None else value)
            if value is None and not self.default_sampling.value:
                control.tooltip = "The checkpoint's default until you change it"
        self.seed.value = "" if settings.seed is None else str(settings.seed)
        size = settings.max_pixels or 0
        self.max_pixels.options = _sizes(size)
        self.max_pixels.value = size
        self._show_others()

    def _show_others(self) -> None:
        """Show the options that have no control, where they differ from the default."""
        controls = vars(self)
        others = [
            f"{option.name} {_shown(value)}"
            for option, value in self._settings
            if option.name not in controls and value != option.default
        ]
        self.others.value = f"also: {', '.join(others)}" if others else ""
        self.others.layout.display = None if others else "none"

    def _show_whether_off(self, _: Any = None) -> None:
        why = f"Off while “{_DEFAULT_SAMPLING}” is on" if self.default_sampling.value else ""
        for control in (self.temperature, self.top_p, self.top_k):
            control.disabled = self.default_sampling.value
            control.tooltip = why


def _sizes(size: int) -> list[tuple[str, int]]:
    """Return the choices of an image size, with one that is not among the usual ones."""
    sizes = {**_SIZES, size: _SIZES.get(size, f"at most {size:,} pixels")}
    return [(text, pixels) for pixels, text in sizes.items()]


def _put(control: Any, value: float) -> None:
    """Set a number; the control's limits must not change a value that was set elsewhere."""
    control.min, control.max = min(control.min, value), max(control.max, value)
    control.value = value


def _shown(value: object) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return one_line(" ".join(repr(each) for each in values), 60)
