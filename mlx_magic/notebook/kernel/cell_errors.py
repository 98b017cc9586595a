"""Errors and interrupts of our cells are one line, in the notebook and in programs that run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from IPython.core.error import UsageError

from mlx_magic.errors import EngineError, GenerationError, MlxMagicError, ShortTraceback

_MARK = "mlx_magic"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Raise user errors as UsageError; show interrupts and other errors of ours without frames."""
    try:
        with ShortTraceback():
            yield
    except (GenerationError, EngineError) as error:
        _without_frames(error, f"{type(error).__name__}: {error}")
        raise
    except KeyboardInterrupt as error:
        _without_frames(error, "KeyboardInterrupt")
        raise
    except MlxMagicError as error:
        # Not a subclass: IPython shows a traceback for those.
        usage = UsageError(str(error))
        setattr(usage, _MARK, True)
        raise usage from None


def _without_frames(error: BaseException, line: str) -> None:
    """Let IPython show an exception as a line: a traceback would show the rewritten cell."""
    # Not a lambda: the error must remain picklable.
    error._render_traceback_ = partial(list, (line,))  # type: ignore[attr-defined]


def install(ipython: Any) -> None:
    """Report our usage errors in a kernel as errors.

    IPython only prints them, so that a program that runs the notebook learns of an error without
    a message (papermill), and ``%%capture`` hides it.
    """
    if getattr(ipython, "kernel", None) is None:
        return
    print_it = ipython.show_usage_error

    def show(error: UsageError) -> None:
        if getattr(error, _MARK, False):
            ipython._showtraceback(UsageError, error, [f"UsageError: {error}"])
        else:
            print_it(error)

    ipython.show_usage_error = show


def uninstall(ipython: Any) -> None:
    """Undo `install`."""
    vars(ipython).pop("show_usage_error", None)
