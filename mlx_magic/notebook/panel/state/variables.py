"""Free names of variables for new values."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from mlx_magic.formatting import short_label
from mlx_magic.notebook.magic_line.variable_names import is_reserved

_LONGEST_NAME = 40


def free_name(wanted: str, namespace: Mapping[str, object], value: object) -> str:
    """Return a variable name for `value` that is not used by another value.

    Parameters
    ----------
    wanted : str
        A file's name, or any other text: ``"receipt (1).jpg"`` gives ``receipt_1``.
    namespace : mapping
        The notebook's variables. A name that already holds `value` counts as free.
    value : object
    """
    stem = re.split(r"[/\\]", wanted.rstrip("/\\"))[-1]
    stem = re.sub(r"(?<=.)\.[A-Za-z]\w{0,4}$", "", stem)
    # Python normalizes identifiers to NFKC.
    stem = unicodedata.normalize("NFKC", stem)
    kept = "".join(char if f"_{char}".isidentifier() else "_" for char in stem)
    name = re.sub("__+", "_", kept)[:_LONGEST_NAME].strip("_") or "image"
    if not name.isidentifier() or is_reserved(name):
        name = f"image_{name}"
    free, number = name, 1
    while free in namespace and namespace[free] is not value:
        number += 1
        free = f"{name}_{number}"
    return free


def describe_existing(name: str, namespace: Mapping[str, object]) -> str:
    """Return the current value's type, as ``"x is a DataFrame"``; ``""`` if undefined."""
    if name not in namespace:
        return ""
    value = namespace[name]
    if value is None:
        return f"{name} is None"
    kind = short_label(type(value).__name__, _LONGEST_NAME)
    return f"{name} is {'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
