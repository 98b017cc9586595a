"""The environment that mlx-vlm, mlx-lm and transformers assume: UTF-8, a cwd, standard files.

They open text files in the locale's encoding, and call ``os.getcwd`` during their import. MLX
takes file descriptor 0 for a file that could not be opened (mlx 0.32.4, read in its ``load.cpp``).
"""

from __future__ import annotations

import codecs
import contextlib
import locale
import os
import sys
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

UTF8 = ("C.UTF-8", "C.utf8", "en_US.UTF-8", "UTF-8")
"""Locales to try, in order: the first is glibc's and musl's, the last is macOS's."""

_lock = threading.Lock()
_inside = 0
_before: str | None = None
_left: int | None = None
"""Descriptor of the working directory that was left: it is deleted, so it has no path."""


@contextlib.contextmanager
def usual() -> Iterator[None]:
    """Set a UTF-8 locale and a working directory within the block, for the whole process.

    Nothing is changed if both exist already, as they do nearly everywhere.
    """
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            _enter()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _leave()


def sliced(steps: Generator[None, None, T]) -> Generator[None, None, T]:
    """Run each slice of a generator within `usual`."""
    try:
        while True:
            with usual():
                try:
                    step = next(steps)
                except StopIteration as end:
                    result: T = end.value
                    return result
            yield step
    finally:
        steps.close()


def open_standard_files() -> None:
    """Open the null device for standard input, output and error if they are closed.

    Otherwise the next file that is opened gets the descriptor: MLX does not read a file with
    descriptor 0, and printed text would go into a file with descriptor 1 or 2.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):  # the lowest free number is this one
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _enter() -> None:
    global _before, _left
    if sys.platform != "win32" and not _is_utf8():
        _before = locale.setlocale(locale.LC_CTYPE)
        for name in UTF8:
            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
                break
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        with contextlib.suppress(OSError):
            _left = os.open(".", os.O_RDONLY)
            os.chdir("/")


def _leave() -> None:
    global _before, _left
    if _before is not None:
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, _before)
        _before = None
    if _left is not None:
        with contextlib.suppress(OSError):
            os.fchdir(_left)
        with contextlib.suppress(OSError):
            os.close(_left)
        _left = None


def _is_utf8() -> bool:
    if sys.flags.utf8_mode:
        return True
    try:
        return codecs.lookup(locale.getencoding()).name == "utf-8"
    except LookupError:
        return False
