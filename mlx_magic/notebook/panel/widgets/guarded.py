"""Errors of callbacks as one line on the panel, as there is no cell to show them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from mlx_magic.errors import MlxMagicError
from mlx_magic.formatting import short_label

_log = logging.getLogger(__name__)
_LONGEST = 1_000


@contextlib.contextmanager
def guarded(say: Callable[[str], None]) -> Iterator[None]:
    """Report exceptions as one line.

    Parameters
    ----------
    say : callable
        Shows the line.
    """
    try:
        yield
    except MlxMagicError as error:
        say(short_label(" ".join(str(error).split()), _LONGEST))
    except Exception as error:
        # A bug, not a user error: log the traceback.
        _log.exception("A control of the panel failed.")
        what = short_label(f"{type(error).__name__}: {error}", _LONGEST)
        say(f"That failed: {what}. The kernel's log has more.")


class Guarded:
    """Proxy whose method calls are guarded.

    Parameters
    ----------
    events : object
        Object that handles the calls.
    say : callable
        Shows an error.
    """

    def __init__(self, events: object, say: Callable[[str], None]) -> None:
        self._events = events
        self._say = say

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._events, name)

        def call(*args: Any, **kwargs: Any) -> None:
            with guarded(self._say):
                method(*args, **kwargs)

        return call
