"""Images from objects of other libraries, recognized without importing the libraries."""

from __future__ import annotations

import base64
import binascii
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import ImageDecodeError, ImageError
from mlx_magic.formatting import reason
from mlx_magic.images.decoding.quiet_libraries import without_log_lines
from mlx_magic.images.files import read_limited
from mlx_magic.images.limits import check_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUPPORTED = (
    "a path, glob, URL, data URI, bytes, PIL image, NumPy array, matplotlib figure, pandas "
    "column, an earlier result, or a list of these"
)


def describe_object(value: Any) -> str:
    """Return a default name for a value: ``"PIL image"``, ``"NumPy array"``..."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    known = {"PIL": "PIL image", "matplotlib": "matplotlib figure"}
    if package == "numpy" and kind.__name__ == "ndarray":
        return "NumPy array"
    if package == "builtins":
        return kind.__name__
    return known.get(package, f"{package} {kind.__name__}")


def refuse_closed(value: Any, label: str) -> None:
    """Refuse a Pillow image, a file or a buffer that was closed.

    Raises
    ------
    ImageDecodeError
    """
    if isinstance(value, memoryview):
        try:
            _ = value.nbytes
        except ValueError as error:
            message = f"{label} was released: pass its bytes, bytes(view), before that."
            raise ImageDecodeError(message, source=label) from error
    elif _is_closed_image(value):
        raise ImageDecodeError(
            f"{label} is closed: ask before image.close() or the end of its with block, or open it "
            "again.",
            source=label,
        )
    elif callable(getattr(value, "read", None)) and getattr(value, "closed", False) is True:
        raise ImageDecodeError(f"{label} is closed: open it again.", source=label)


def _is_closed_image(value: Any) -> bool:
    """Return whether a Pillow image has neither pixels nor an open file."""
    module = sys.modules.get("PIL.Image")
    if module is None or not isinstance(value, module.Image):
        return False
    try:
        # Raises ValueError if the image was closed, AssertionError if it is not loaded yet.
        _ = value.im
    except ValueError:
        return True
    except Exception:
        file = getattr(value, "fp", value)
        return file is None or getattr(file, "closed", False) is True
    return False


def renderer(
    value: Any, label: str, cancel: CancelToken | None = None
) -> Callable[[], bytes] | None:
    """Return a function that encodes an object as an image file, or None.

    Supported are matplotlib figures (and artists of one), open binary files, and objects with a
    PNG or JPEG representation, like ``IPython.display.Image``.
    """
    if isinstance(value, type):
        return None  # a class, such as io.BytesIO without parentheses
    figure = _figure(value)
    if figure is not None:
        return lambda: _render_figure(figure, label)
    if callable(getattr(value, "read", None)):
        return lambda: _read_open_file(value, label, cancel)
    methods = [getattr(type(value), name, None) for name in ("_repr_png_", "_repr_jpeg_")]
    if any(map(callable, methods)) and displayed_url(value) is None:
        return lambda: _displayed_image(value, label)
    return None


def displayed_url(value: Any) -> str | None:
    """Return the URL of an ``IPython.display.Image(url=...)``, or None."""
    if not hasattr(type(value), "_repr_png_") or getattr(value, "data", None):
        return None
    url = getattr(value, "url", None)
    return url if isinstance(url, str) else None


def as_array(value: Any, label: str) -> NDArray[Any] | None:
    """Return an array-like object as a NumPy array, or None if it is not array-like.

    Raises
    ------
    ImageDecodeError
        If it is an MLX array, or its conversion to a NumPy array fails.
    """
    package = type(value).__module__.partition(".")[0]
    if package == "mlx":
        # Evaluating it on a thread other than its own fails, or worse.
        raise ImageDecodeError(
            f"{label} is an MLX array, which belongs to one thread: give np.array(x).",
            source=label,
        )
    if _is_dataframe(value) or not hasattr(type(value), "__array__"):
        return None
    import numpy as np

    try:
        array: NDArray[Any] = np.asarray(value)
    # Foreign code: fails for a tensor on a GPU, one that requires a gradient, ...
    except Exception as error:
        raise ImageDecodeError(
            f"{label} could not be turned into a NumPy array: {reason(error)}.", source=label
        ) from error
    # NumPy scalars are not arrays for a user.
    return array if array.ndim else None


def is_series(value: Any) -> bool:
    """Return whether `value` is a pandas Series."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.Series)


def series_items(value: Any, label: str) -> Iterator[tuple[object, Any]]:
    """Yield index and value of each row of a pandas Series.

    Raises
    ------
    ImageError
        If a row has no value.
    """
    pandas = sys.modules["pandas"]
    for key, item in value.items():
        if item is None or (pandas.api.types.is_scalar(item) and pandas.isna(item)):
            raise ImageError(
                f"{label} has no value at index {key!r}: leave such rows out with .dropna().",
                source=label,
            )
        yield repr(key), item


def refusal_message(value: Any, label: str) -> str:
    """Return the message for a value that is not an image."""
    if _is_dataframe(value):
        columns = [str(column) for column in value.columns]
        column = columns[0] if len(columns) == 1 else "column"
        return f'{label} is a whole DataFrame: give its column of images, df["{column}"].'
    if isinstance(value, Mapping):
        return f"{label} is a dictionary: give one of its values, or list(d.values())."
    if isinstance(value, Set):
        return f"{label} is a set, which has no order: give sorted(x)."
    kind = type(value).__name__
    is_a = "is not" if label == kind else f"is of type {kind}, not"
    return f"{label} {is_a} an image: use {SUPPORTED}."


def _is_dataframe(value: Any) -> bool:
    return hasattr(value, "columns") and any(
        kind.__name__ in ("DataFrame", "LazyFrame") for kind in type(value).__mro__
    )


def _figure(value: Any) -> Any | None:
    module = sys.modules.get("matplotlib.figure")
    if module is None:
        return None
    # Axes, lines, sub-figures and seaborn grids have an attribute `figure`.
    for _ in range(3):
        if isinstance(value, module.Figure):
            return value
        value = getattr(value, "figure", None)
    return None


def _render_figure(figure: Any, label: str) -> bytes:
    width, height = (round(float(side * figure.dpi)) for side in figure.get_size_inches())
    check_pixels((width, height), label)
    buffer = io.BytesIO()
    try:
        # backend="agg" draws on a temporary canvas, and restores the figure's own one.
        with without_log_lines("matplotlib", "PIL"):
            figure.savefig(buffer, format="png", backend="agg", dpi="figure", transparent=False)
    # Foreign code: drawing uses the user's texts, fonts and callbacks.
    except Exception as error:
        raise ImageDecodeError(
            f"{label} cannot be drawn: {reason(error)}.", source=label
        ) from error
    return buffer.getvalue()


def _read_open_file(file: Any, label: str, cancel: CancelToken | None) -> bytes:
    if isinstance(file, io.TextIOBase):
        raise _opened_for_text(label)
    try:
        if not (callable(getattr(file, "seekable", None)) and file.seekable()):
            return read_limited(file, label, cancel)
        # From the start: after image.save(buffer) the position is at the end.
        at = file.tell()
        file.seek(0)
        try:
            return read_limited(file, label, cancel)
        finally:
            file.seek(at)
    except (ImageError, Cancelled):
        raise
    except TypeError as error:
        raise _opened_for_text(label) from error
    # Foreign code: the file may be closed, read() may have another signature, ...
    except Exception as error:
        raise ImageDecodeError(f"{label} cannot be read: {reason(error)}.", source=label) from error


def _opened_for_text(label: str) -> ImageDecodeError:
    return ImageDecodeError(
        f"{label} is a file opened for text: open it with open(path, 'rb').", source=label
    )


def _displayed_image(value: Any, label: str) -> bytes:
    data = getattr(value, "data", None)
    if isinstance(data, bytes):
        return data
    for name in ("_repr_png_", "_repr_jpeg_"):
        method = getattr(value, name, None)
        try:
            encoded = method() if callable(method) else None
        # Foreign code of the object.
        except Exception as error:
            raise ImageDecodeError(
                f"{label} failed to make a PNG or JPEG: {reason(error)}.", source=label
            ) from error
        encoded = encoded[0] if isinstance(encoded, tuple) else encoded
        if isinstance(encoded, str):
            encoded = _from_base64(encoded, label)
        if isinstance(encoded, bytes) and encoded:
            return encoded
    raise ImageDecodeError(f"{label} has no PNG or JPEG representation.", source=label)


def _from_base64(text: str, label: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise ImageDecodeError(
            f"{label} returns damaged base64 as its PNG or JPEG: {reason(error)}.", source=label
        ) from error
