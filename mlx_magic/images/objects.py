"""Images from objects of other libraries, recognized without importing the libraries."""

from __future__ import annotations

import base64
import binascii
import io
import sys
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import ImageDecodeError, ImageError
from mlx_magic.formatting import reason
from mlx_magic.images.files import read_limited
from mlx_magic.images.foreign import containers, figures
from mlx_magic.images.formats import SNIFF_BYTES, image_format
from mlx_magic.images.limits import MAX_FILE_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUPPORTED = (
    "a path, glob, URL, data URI, bytes, PIL image, NumPy array, matplotlib figure, a column of "
    "images, an earlier result, or a list of these"
)


# What a notebook asks an object for, the image formats first.
_METHODS = ("_repr_png_", "_repr_jpeg_")
_MIMES = ("image/png", "image/jpeg")
_ARRAY_METHODS = ("__array__", "__array_interface__", "__array_struct__")


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

    Supported are matplotlib figures (and artists of one), open binary files, and objects with
    ``_repr_png_`` or ``_repr_jpeg_``, like ``IPython.display.Image``.
    """
    if isinstance(value, type):
        return None  # a class, such as io.BytesIO without parentheses
    figure = figures.figure_of(value)
    if figure is not None:
        return lambda: figures.draw(figure, label)
    if callable(getattr(value, "read", None)):
        return lambda: _read_open_file(value, label, cancel)
    methods = [getattr(type(value), name, None) for name in _METHODS]
    if any(map(callable, methods)) and displayed_url(value) is None:
        return lambda: _displayed_image(value, label)
    return None


def bundled_image(value: Any, label: str) -> bytes | None:
    """Return the PNG or JPEG that a notebook shows for an object with ``_repr_mimebundle_``.

    Returns
    -------
    bytes or None
        None if it shows no image.

    Raises
    ------
    ImageDecodeError
        If the object fails.
    """
    method = getattr(type(value), "_repr_mimebundle_", None)
    if isinstance(value, type) or not callable(method):
        return None
    try:
        bundle = method(value, include=set(_MIMES), exclude=None)
    # Foreign code of the object.
    except Exception as error:
        raise ImageDecodeError(
            f"{label} failed to make a PNG or JPEG: {reason(error)}.", source=label
        ) from error
    data = bundle[0] if isinstance(bundle, tuple) and bundle else bundle
    if not isinstance(data, Mapping):
        return None
    encoded = next((data[mime] for mime in _MIMES if data.get(mime)), None)
    if isinstance(encoded, str):
        return _from_base64(encoded, label)
    return encoded if isinstance(encoded, bytes) else None


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
        If it is an MLX array, has masked values, or its conversion to a NumPy array fails.
    """
    package = type(value).__module__.partition(".")[0]
    if package == "mlx":
        # Evaluating it on a thread other than its own fails, or worse.
        raise ImageDecodeError(
            f"{label} is an MLX array, which belongs to one thread: give np.array(x).",
            source=label,
        )
    if containers.table_advice(value, label) or isinstance(value, type):
        return None
    # Of the interface, objects have an attribute of their own.
    if not hasattr(type(value), _ARRAY_METHODS[0]) and not any(
        hasattr(value, name) for name in _ARRAY_METHODS[1:]
    ):
        return None
    import numpy as np

    if isinstance(value, np.ma.MaskedArray) and (masked := int(np.ma.getmaskarray(value).sum())):
        raise ImageDecodeError(
            f"{label} has {masked} masked values, which no image can show: fill them, for example "
            "with x.filled(0).",
            source=label,
        )
    try:
        array: NDArray[Any] = np.asarray(value)
    # Foreign code: fails for a tensor on a GPU, one that requires a gradient, ...
    except Exception as error:
        raise ImageDecodeError(
            f"{label} could not be turned into a NumPy array: {reason(error)}.", source=label
        ) from error
    # NumPy scalars are not arrays for a user.
    return array if array.ndim else None


def as_buffer(value: Any) -> memoryview | None:
    """Return the bytes of an object with a buffer of bytes, such as an array.array; else None."""
    try:
        view = memoryview(value)
    except (TypeError, BufferError, ValueError):
        return None
    return view if view.format in ("B", "b", "c") and view.ndim == 1 else None


def encoded_file(array: NDArray[Any]) -> bytes | None:
    """Return the bytes of an array that holds a file, as `cv2.imencode` gives; else None."""
    flat = array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    if not flat or array.dtype.kind != "u" or array.dtype.itemsize != 1 or not array.size:
        return None
    head = array[:SNIFF_BYTES].tobytes()
    # Broadcast arrays may be far larger than they look; they hold no file.
    if image_format(head) is None or array.nbytes > MAX_FILE_BYTES:
        return None
    return array.tobytes()


def refusal_message(value: Any, label: str) -> str:
    """Return the message for a value that is not an image."""
    if advice := containers.table_advice(value, label):
        return advice
    if isinstance(value, Mapping):
        return f"{label} is a dictionary: give one of its values, or list(d.values())."
    if isinstance(value, Set):
        return f"{label} is a set, which has no order: give sorted(x)."
    kind = type(value).__name__
    is_a = "is not" if label == kind else f"is of type {kind}, not"
    return f"{label} {is_a} an image: use {SUPPORTED}."


def _read_open_file(file: Any, label: str, cancel: CancelToken | None) -> bytes:
    if isinstance(file, io.TextIOBase):
        raise _opened_for_text(label)
    try:
        # Before Python 3.13 an mmap cannot say so.
        seekable = getattr(
            file, "seekable", lambda: hasattr(file, "seek") and hasattr(file, "tell")
        )
        if not (callable(seekable) and seekable()):
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
    for name in _METHODS:
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
