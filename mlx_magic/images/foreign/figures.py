"""matplotlib figures, drawn as a notebook shows them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from mlx_magic.errors import ImageDecodeError
from mlx_magic.formatting import reason
from mlx_magic.images.decoding.quiet_libraries import without_log_lines
from mlx_magic.images.limits import check_pixels

_TIGHT: Mapping[str, Any] = {"bbox_inches": "tight"}
# Of the formats of the inline backend, those that double the resolution.
_DOUBLED = frozenset({"retina", "png2x"})


def figure_of(value: Any) -> Any | None:
    """Return the figure of a figure, axes, artist, sub-figure or seaborn grid; else None."""
    module = sys.modules.get("matplotlib.figure")
    if module is None:
        return None
    for _ in range(3):
        if isinstance(value, module.Figure):
            return value
        value = getattr(value, "figure", None)
    return None


def figures_of_axes(values: Iterable[Any]) -> list[Any] | None:
    """Return the figures of a collection that holds nothing but axes, each once; else None."""
    module = sys.modules.get("matplotlib.axes")
    if module is None:
        return None
    figures: list[Any] = []
    for value in values:
        figure = figure_of(value) if isinstance(value, module.Axes) else None
        if figure is None:
            return None
        if not any(figure is known for known in figures):
            figures.append(figure)
    return figures or None


def draw(figure: Any, label: str) -> bytes:
    """Return a figure as the PNG that the inline backend shows for it.

    Its settings (`%config InlineBackend`) apply: by default the figure is cut around all that is
    drawn, a legend outside of the axes included.

    Raises
    ------
    ImageDecodeError
        If the figure is empty, or drawing it fails.
    ImageTooLargeError
    """
    kwargs, doubled = _inline_settings()
    options = {
        "facecolor": figure.get_facecolor(),
        "edgecolor": figure.get_edgecolor(),
        "dpi": figure.dpi * (2 if doubled else 1),
        **_TIGHT,
        **kwargs,
        "format": "png",
    }
    whole = [float(side) for side in figure.get_size_inches()]
    _check_size(whole, options["dpi"], figure, label)
    if not _has_content(figure):
        raise ImageDecodeError(
            f"{label} is an empty figure. A notebook starts a new one in each cell: draw and ask "
            "in the same cell, or keep the figure in a variable.",
            source=label,
        )
    buffer = io.BytesIO()
    try:
        with without_log_lines("matplotlib", "PIL"):
            if options.get("bbox_inches") == "tight" and "bbox_extra_artists" not in options:
                figure.draw_without_rendering()
                box = figure.get_tightbbox()
                _check_size([box.width, box.height], options["dpi"], figure, label)
            # backend="agg" draws on a temporary canvas, and restores the figure's own one.
            figure.canvas.print_figure(buffer, backend="agg", **options)
    except ImageDecodeError:
        raise
    # Foreign code: drawing uses the user's texts, fonts and callbacks.
    except Exception as error:
        if hasattr(error, "limit"):  # our own: too large
            raise
        raise ImageDecodeError(
            f"{label} cannot be drawn: {reason(error)}.", source=label
        ) from error
    return buffer.getvalue()


def _inline_settings() -> tuple[Mapping[str, Any], bool]:
    """Return print_figure_kwargs of the inline backend, and whether it doubles the resolution."""
    module = sys.modules.get("matplotlib_inline.config")
    backend = getattr(module, "InlineBackend", None)
    if backend is None or not backend.initialized():
        return _TIGHT, False
    settings = backend.instance()
    formats = set(settings.figure_formats)
    kwargs = dict(settings.print_figure_kwargs)
    if not formats & {"png", *_DOUBLED}:
        # Options of another format, such as the metadata of an SVG, may not fit a PNG.
        kwargs = {key: value for key, value in kwargs.items() if key not in _OF_FORMATS}
    return kwargs, bool(formats & _DOUBLED)


_OF_FORMATS = frozenset({"format", "metadata", "pil_kwargs", "quality", "papertype", "orientation"})


def _has_content(figure: Any) -> bool:
    """Return whether anything but the background was drawn."""
    return any(child is not figure.patch for child in figure.get_children())


def _check_size(inches: list[float], dpi: Any, figure: Any, label: str) -> None:
    number = float(figure.dpi if dpi == "figure" else dpi)
    width, height = (max(0, round(side * number)) for side in inches)
    check_pixels((width, height), label)
