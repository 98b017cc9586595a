"""Which of the notebook's variables hold images."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_magic.engine.result import VisionResult
from mlx_magic.formatting import short_label
from mlx_magic.images.formats import SNIFF_BYTES, image_format
from mlx_magic.images.image import ImageInput
from mlx_magic.images.limits import MAX_IMAGES, MAX_PIXELS_DECODED
from mlx_magic.notebook.magic_line.variable_names import is_ipython_name
from mlx_magic.user_folders import expanded

MOST_VARIABLES = 200
"""Maximum number of variables that are listed."""

MOST_STATS = 64
"""Maximum number of files that one listing checks, as a disk may be slow."""

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
    | {".ppm", ".pgm", ".pbm", ".ico", ".jp2", ".heic", ".heif"}
)
"""Suffixes of files that are offered as images."""

_FIRST_ITEMS = 3
_LONGEST_PATH = 1_024
_LONGEST_NAME = 40
_SMALLEST_SIDE = 8
_LONGEST_SHAPE = 8  # ratio of the sides; beyond it a 2-D array is a table, not an image
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class ImageVariable:
    """A variable that holds one or more images.

    Attributes
    ----------
    name : str
    what : str
        Description to show, such as ``"PIL image 640x480"``.
    """

    name: str
    what: str


def image_variables(namespace: Mapping[str, object]) -> list[ImageVariable]:
    """Return the variables that hold images, sorted by name.

    Only types are inspected: no library is imported, no image read, no code of an unknown class
    run. Only the first items of a list are inspected.

    Parameters
    ----------
    namespace : mapping
        The notebook's variables. Names that begin with ``_`` and IPython's own are left out.
    """
    inspector = _Inspector()
    found: list[ImageVariable] = []
    for name, value in list(namespace.items()):
        if name.startswith("_") or is_ipython_name(name) or len(found) >= MOST_VARIABLES:
            continue
        if what := inspector.at(value):
            found.append(ImageVariable(name, what))
    return sorted(found, key=lambda variable: (variable.name.casefold(), variable.name))


class _Inspector:
    """One inspection of the variables, with its remaining number of file checks."""

    def __init__(self) -> None:
        self._stats = MOST_STATS
        self._image = _class("PIL.Image", "Image")
        self._array = _class("numpy", "ndarray")
        self._series = _class("pandas", "Series")
        self._figure = _class("matplotlib.figure", "FigureBase")
        self._axes = _class("matplotlib.axes", "Axes")
        self._polars = _class("polars", "Series")
        self._arrow = (_class("pyarrow", "Array"), _class("pyarrow", "ChunkedArray"))
        self._dataset = _class("datasets.arrow_dataset", "Column")
        self._streamed = _class("datasets.iterable_dataset", "IterableColumn")

    def at(self, value: Any, *, inside: bool = False) -> str:
        """Describe the image that a value is; ``""`` if it is not a supported image."""
        kind = type(value)
        try:
            if issubclass(kind, (list, tuple)):
                base: Any = list if issubclass(kind, list) else tuple
                first = base.__getitem__(value, slice(_FIRST_ITEMS))
                return "" if inside else self._describe_list(base.__len__(value), first)
            if issubclass(kind, (str, Path)):
                return self._file(value)
            if issubclass(kind, (ImageInput, VisionResult)):
                return _describe_own(value)
            if issubclass(kind, self._image):
                return "PIL image {}x{}".format(*value.size)
            if issubclass(kind, self._array):
                return _array(value)
            if issubclass(kind, self._figure):
                return "figure"
            if issubclass(kind, self._axes):
                return "axes"
            if issubclass(kind, bytes):
                return _encoded(value)
            if inside:
                return self._record(value) if kind is dict else ""
            return self._column(kind, value)
        except Exception:  # a subclass whose len, size or dtype fails
            return ""

    def _column(self, kind: type, value: Any) -> str:
        """Describe a column of images of another library; ``""`` for other values.

        Columns of numbers and of nested lists are not read.
        """
        if issubclass(kind, self._series):
            # Columns of pyarrow's types are not of NumPy's kind "O" in all releases of pandas.
            first = value.iloc[:_FIRST_ITEMS] if value.dtype.kind == "O" else ()
        elif issubclass(kind, self._polars):
            read = str(value.dtype).startswith(("Binary", "String", "Struct", "Object"))
            first = value[:_FIRST_ITEMS].to_list() if read else ()
        elif issubclass(kind, self._arrow):
            read = str(value.type).startswith(("binary", "large_binary", "string", "struct"))
            first = value[:_FIRST_ITEMS].to_pylist() if read else ()
        elif issubclass(kind, self._dataset):
            feature = value.source.features[value.column_name]
            if _is_image_feature(feature):  # reading one would decode it
                return _count(len(value))
            read = getattr(feature, "dtype", "") in ("string", "binary", "large_string")
            first = value[:_FIRST_ITEMS] if read else ()
        elif issubclass(kind, self._streamed):
            features = value.source.features or {}
            return "images" if _is_image_feature(features.get(value.column_name)) else ""
        else:
            return ""
        return self._describe_list(len(value), first) if len(first) else ""

    def _record(self, value: dict[str, Any]) -> str:
        """Describe an image of a Hugging Face dataset that is not decoded."""
        data = value.get("bytes")
        if type(data) is bytes:
            return _encoded(data)
        path = value.get("path")
        return self._file(path) if data is None and type(path) is str else ""

    def _describe_list(self, count: int, values: Any) -> str:
        if not all(self.at(value, inside=True) for value in values):
            return ""
        return _count(count)

    def _file(self, value: str | Path) -> str:
        text = str.__str__(value) if isinstance(value, str) else str(value)
        if len(text) > _LONGEST_PATH or Path(text[-8:]).suffix.lower() not in IMAGE_SUFFIXES:
            return ""
        if "://" in text or self._stats < 1:
            return ""
        self._stats -= 1
        try:
            exists = expanded(text).is_file()
        except (OSError, ValueError, RuntimeError):  # invalid path; no such user
            return ""
        return f"file {short_label(Path(text).name, _LONGEST_NAME)}" if exists else ""


def _count(count: int) -> str:
    """Describe so many images; ``""`` if they do not fit in a request."""
    if not 0 < count <= MAX_IMAGES:
        return ""
    return "1 image" if count == 1 else f"{count} images"


def _is_image_feature(feature: object) -> bool:
    return type(feature).__name__ == "Image"


def _encoded(data: bytes) -> str:
    """Describe the content of an image file; ``""`` for other bytes."""
    name = image_format(bytes.__getitem__(data, slice(SNIFF_BYTES)))
    return f"{name} file in memory" if name else ""


def _class(module: str, name: str) -> type:
    """Return a class of an imported library, or a class without instances."""
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else _NeverInstantiated


class _NeverInstantiated:
    """Stands for a class of a library that is not imported."""


def _describe_own(value: ImageInput | VisionResult) -> str:
    if isinstance(value, ImageInput):
        return "image {}x{}".format(*value.size)
    count = len(value.images)
    return f"result with {count} image{'' if count == 1 else 's'}" if count else ""


def _array(array: Any) -> str:
    """Return the shape of a numeric array whose axes may be those of images; else ``""``."""
    shape, dtype = array.shape, array.dtype
    if dtype.kind not in "buif" or not 2 <= len(shape) <= 4 or not _is_shape(shape):
        return ""
    return "array " + "x".join(map(str, shape))


def _is_shape(shape: tuple[int, ...]) -> bool:
    if len(shape) == 4:
        return 0 < shape[0] <= MAX_IMAGES and _is_shape(shape[1:])
    if len(shape) == 3 and shape[2] not in _CHANNELS and shape[0] not in _CHANNELS:
        return False
    # Channels come last or first.
    sides = shape[:2] if len(shape) == 2 or shape[2] in _CHANNELS else shape[1:]
    short, long = sorted(sides)
    if len(shape) == 2 and long > short * _LONGEST_SHAPE:
        return False
    return short >= _SMALLEST_SIDE and short * long <= MAX_PIXELS_DECODED
