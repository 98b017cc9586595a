"""Suppresses Pillow's warnings and log messages while an image is decoded here, and only then.

`warnings.catch_warnings` affects all threads, and a plain filter would also hide warnings of the
user's own use of Pillow. So one filter is installed whose category matches depending on the context
of the thread that warns. It is the first filter, so that it also applies if the user turned
warnings into errors: an unusual metadata entry of a camera is no reason to refuse an image.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_quiet: ContextVar[bool] = ContextVar("mlx_magic_quiet", default=False)
# The only module of Pillow that logs above the debug level while reading.
_LOGGER = "PIL.TiffImagePlugin"


class _ByContext(type):
    def __subclasscheck__(cls, subclass: type) -> bool:
        return _quiet.get() and not issubclass(subclass, ResourceWarning)


class WarningWhileQuiet(Warning, metaclass=_ByContext):
    """The filter's category: every warning is a subclass of it while this thread is quiet."""


class _DropWhileQuiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _quiet.get()


_drop_while_quiet = _DropWhileQuiet()


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings of this thread while the block runs."""
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[2] is not WarningWhileQuiet:
        # Needed again after `resetwarnings`, and within `catch_warnings`, of other code.
        warnings.simplefilter("ignore", WarningWhileQuiet)
    logging.getLogger(_LOGGER).addFilter(_drop_while_quiet)
    before = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(before)
