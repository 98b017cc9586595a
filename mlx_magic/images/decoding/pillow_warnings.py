"""Pillow's warnings and log lines, dropped while an image is decoded here, and only then.

`warnings.catch_warnings` changes what all threads see, and a plain filter would also hide what
Pillow tells a person's own code. So one filter is installed whose category matches by the context
of the thread that warns. Being first in the list it also holds where a person turned warnings into
errors: an odd note of a camera is no reason to refuse an image.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_quiet: ContextVar[bool] = ContextVar("mlx_magic_quiet", default=False)
# The one module of Pillow that logs more than debugging while it reads.
_LOGGER = "PIL.TiffImagePlugin"


class _ByContext(type):
    def __subclasscheck__(cls, subclass: type) -> bool:
        return _quiet.get() and not issubclass(subclass, ResourceWarning)


class WarningWhileQuiet(Warning, metaclass=_ByContext):
    """The category of the filter: has every warning as a subclass while this thread is quiet."""


class _DropWhileQuiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _quiet.get()


_drop_while_quiet = _DropWhileQuiet()


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings of this thread while the block runs."""
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[2] is not WarningWhileQuiet:
        # Also after somebody's `resetwarnings`, and in somebody's `catch_warnings`.
        warnings.simplefilter("ignore", WarningWhileQuiet)
    logging.getLogger(_LOGGER).addFilter(_drop_while_quiet)
    before = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(before)
