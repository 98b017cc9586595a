"""Suppresses the warnings and log messages of libraries while we call them, and only then.

`warnings.catch_warnings` affects all threads, and a plain filter would also hide warnings of the
user's own use of Pillow. So one filter is installed whose category matches depending on the context
of the thread that warns. It is the first filter, so that it also applies if the user turned
warnings into errors: an unusual metadata entry of a camera is no reason to refuse an image.

Log messages are dropped in the same way: somebody who turns on logging to debug a notebook should
not get dozens of lines of other libraries for each question.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_quiet: ContextVar[bool] = ContextVar("mlx_magic_quiet", default=False)
_packages: ContextVar[frozenset[str]] = ContextVar("mlx_magic_packages", default=frozenset())
# The modules of Pillow that log. They are imported later than the filter is added.
_LOGGERS = tuple(f"PIL.{name}" for name in ("PngImagePlugin", "TiffImagePlugin", "ImageFile"))


class _ByContext(type):
    def __subclasscheck__(cls, subclass: type) -> bool:
        return _quiet.get() and not issubclass(subclass, ResourceWarning)


class WarningWhileQuiet(Warning, metaclass=_ByContext):
    """The filter's category: every warning is a subclass of it while this thread is quiet."""


class _DropWhileQuiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _quiet.get()


class _DropLines(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        dropped = record.levelno < logging.WARNING
        return not (dropped and record.name.partition(".")[0] in _packages.get())


_drop_while_quiet = _DropWhileQuiet()
_drop_lines = _DropLines()


@contextmanager
def without_log_lines(*packages: str) -> Iterator[None]:
    """Drop log messages of this thread below WARNING while the block runs.

    Parameters
    ----------
    *packages : str
        Top-level packages that log, and are imported already.
    """
    # A logger of a module that the user set to DEBUG by its name keeps its messages.
    if any(logging.getLogger(package).isEnabledFor(logging.INFO) for package in packages):
        for name in list(logging.root.manager.loggerDict):
            if name.partition(".")[0] in packages:
                # A filter that is there is not added again.
                logging.getLogger(name).addFilter(_drop_lines)
    before = _packages.set(_packages.get().union(packages))
    try:
        yield
    finally:
        _packages.reset(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the warnings of this thread, and Pillow's log messages, while the block runs."""
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[2] is not WarningWhileQuiet:
        # Needed again after `resetwarnings`, and within `catch_warnings`, of other code.
        warnings.simplefilter("ignore", WarningWhileQuiet)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_drop_while_quiet)
    before = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(before)
