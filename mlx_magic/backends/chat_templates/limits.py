"""Limits of a chat template: time, memory, and the size of each value."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.cancellation import CancelToken

ITEM = 32
"""Weight of an item of a container, in characters; a small Python object takes as much."""

DEPTH = 100
"""Maximum nesting of macros, blocks and recursive loops."""

_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: tuple[type, ...] = (dict, list, tuple, set, frozenset, *_VIEWS)
_CHECKED = 2**18
"""Work between two checks of the time and of the cancel token."""

_RECORD = 200
"""Bytes of `TemplateBudget`'s own record of a container."""


@dataclass(frozen=True)
class TemplateLimits:
    """Limits of a chat template.

    Attributes
    ----------
    seconds : float
        CPU time of the thread, compilation included. Waiting for other threads is not counted.
    characters : int
        Length of one value, and of the output, beyond twice the input's.
    memory : int
        Bytes of all values together, beyond 32 times the input.
    source : int
        Characters of the template.
    compiled : int
        Characters of the Python code that Jinja makes of it.
    """

    seconds: float = 2.0
    characters: int = 4 * 2**20
    memory: int = 128 * 2**20
    source: int = 256 * 2**10
    compiled: int = 2**20


class TemplateLimitError(Exception):
    """A chat template exceeds a limit; the message is the reason."""


class UnsafeTemplateError(Exception):
    """A chat template tries to run code or to read files."""


class TemplateBudget:
    """What one chat template has used of its limits.

    Parameters
    ----------
    limits : TemplateLimits
    clock : callable
        Returns seconds.
    cancel : CancelToken, optional
        Ends the template when it is set.
    """

    def __init__(
        self,
        limits: TemplateLimits | None = None,
        clock: Callable[[], float] = time.thread_time,
        cancel: CancelToken | None = None,
    ) -> None:
        self.limits = limits or TemplateLimits()
        self.longest = self.limits.characters
        """Characters that one value may have."""
        self._clock = clock
        self._cancel = cancel or CancelToken()
        self._memory = self.limits.memory
        self._used = 0.0
        self._since: float | None = None
        self._unchecked = 0
        self._depth = 0
        # Holds each container, so that its id is not reused.
        self._weights: dict[int, tuple[object, int, int]] = {}

    @property
    def items(self) -> int:
        """Return how many items a container may have."""
        return self.longest // ITEM

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time within this block; nested blocks count once.

        Raises
        ------
        TemplateLimitError
            Instead of RecursionError and MemoryError.
        """
        outer = self._since
        if outer is None:
            self._since = self._clock()
        try:
            yield
        except RecursionError:
            raise TemplateLimitError("it nests too deeply") from None
        except MemoryError:
            raise TemplateLimitError("it takes too much memory") from None
        finally:
            if outer is None and self._since is not None:
                self._used += self._clock() - self._since
                self._since = None

    def allow_for(self, variables: Mapping[str, Any]) -> None:
        """Increase the limits by the size of a template's input."""
        longest, self.longest = self.longest, sys.maxsize
        weight = sum(map(self.weight, variables.values()))
        self.longest = longest + 2 * weight
        self._memory += 32 * weight

    def tick(self) -> None:
        """Count a step that makes nothing large.

        Raises
        ------
        TemplateLimitError
            When the time is up.
        """
        self._unchecked += 2**12
        if self._unchecked >= _CHECKED:
            self._check()

    def work(self, *values: Any) -> None:
        """Count the work of a call that is about to read these values.

        Raises
        ------
        TemplateLimitError
            When the time is up, or a value is too large to be read.
        """
        size = 2**12
        for value in values:
            size += self.weight(value)
        self._unchecked += size
        if self._unchecked >= _CHECKED:
            self._check()

    def require(self, length: int) -> None:
        """Refuse a value before it is made.

        Parameters
        ----------
        length : int
            Characters of the value.

        Raises
        ------
        TemplateLimitError
        """
        if length > self.longest:
            raise TemplateLimitError(
                f"it makes a text or list of more than {self.longest:,} characters"
            )

    def count_value(self, value: Any, *, fresh_items: bool = False) -> Any:
        """Count a value that was just made, and return it.

        Parameters
        ----------
        value : object
        fresh_items : bool
            Whether its items are new, too.

        Raises
        ------
        TemplateLimitError
        """
        if isinstance(value, str):
            self.require(len(value))
            self.charge(sys.getsizeof(value))
        elif isinstance(value, _CONTAINERS):
            self.weight(value)
            self.charge(_RECORD + sys.getsizeof(value))
            if fresh_items and isinstance(value, (list, tuple)):
                self.charge(sum(map(sys.getsizeof, value)))
        return value

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """Make a list, with its length checked.

        Raises
        ------
        TemplateLimitError
        """
        if isinstance(values, Sized):
            self.require(len(values) * ITEM)
        found = []
        for value in values:
            found.append(value)
            self._step(len(found) * ITEM)
        self.count_value(found)
        return found

    def joined(self, pieces: Iterable[str]) -> str:
        """Join texts, with their total length checked first.

        Raises
        ------
        TemplateLimitError
        """
        found, length = [], 0
        for piece in pieces:
            found.append(piece)
            length += len(piece)
            # As `_step`, without a call for each piece.
            self._unchecked += ITEM
            if length > self.longest or self._unchecked >= _CHECKED:
                self._step(length)
        text: str = self.count_value("".join(found))
        return text

    def charge(self, size: int) -> None:
        """Count allocated bytes.

        Raises
        ------
        TemplateLimitError
        """
        self._memory -= size
        if self._memory < 0:
            raise TemplateLimitError("it takes too much memory")
        self._unchecked += size
        if self._unchecked >= _CHECKED:
            self._check()

    @contextmanager
    def called(self) -> Iterator[None]:
        """Count how deeply calls are nested.

        Raises
        ------
        TemplateLimitError
        """
        if self._depth >= DEPTH:
            raise TemplateLimitError("it nests too deeply")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def weight(self, value: Any) -> int:
        """Return the length of a value written out; an item that occurs twice counts twice.

        A list that holds a list twice, which holds a list twice, and so on, is small in memory,
        but takes exponential time to print or compare.

        Raises
        ------
        TemplateLimitError
            The value is too long, or holds anything but plain data.
        """
        return ITEM + len(value) if isinstance(value, str) else self.measured(value)[0]

    def measured(self, value: Any) -> tuple[int, int]:
        """Return the weight of a value, and its nesting depth."""
        if isinstance(value, str):
            return ITEM + len(value), 0
        if isinstance(value, range):
            return ITEM * (1 + len(value)), 1
        if not isinstance(value, _CONTAINERS):
            return ITEM + (value.bit_length() // 3 if isinstance(value, int) else 0), 0
        known = self._weights.get(id(value))
        if known is not None:
            return known[1], known[2]
        weight, depth = ITEM, 0
        # A view makes new pairs each time, so measure its mapping.
        mapping: Any = getattr(value, "mapping") if isinstance(value, _VIEWS) else value  # noqa: B009
        is_mapping = mapping is not value or isinstance(value, dict)
        for part in (*mapping.keys(), *mapping.values()) if is_mapping else mapping:
            if isinstance(part, str):
                weight += ITEM + len(part)
            elif _is_data(part):
                more, deeper = self.measured(part)
                weight, depth = weight + more, max(depth, deeper)
            else:
                raise TemplateLimitError(
                    f"it puts a {type(part).__name__} into a list, which only plain data may be in"
                )
            # As `_step`, without a call for each part.
            self._unchecked += 2 * ITEM
            if weight > self.longest or self._unchecked >= _CHECKED:
                self._step(weight)
        if mapping is value:
            self._weights[id(value)] = value, weight, depth + 1
        return weight, depth + 1

    def _step(self, length: int) -> None:
        """Count an item of a value that has this length so far."""
        self.require(length)
        self._unchecked += ITEM
        if self._unchecked >= _CHECKED:
            self._check()

    def _check(self) -> None:
        self._unchecked = 0
        self._cancel.checkpoint()
        if self._since is None:
            return
        if self._used + self._clock() - self._since > self.limits.seconds:
            raise TemplateLimitError(f"it runs for longer than {self.limits.seconds:g} s")


BUDGET: ContextVar[TemplateBudget | None] = ContextVar("chat_template_budget", default=None)
"""The budget of the chat template that this thread renders; None if it renders none."""


def budget() -> TemplateBudget:
    """Return the budget of the template that this thread renders.

    Raises
    ------
    RuntimeError
        When there is none.
    """
    found = BUDGET.get()
    if found is None:
        raise RuntimeError("a chat template is rendered without a budget")
    return found


def _is_data(value: Any) -> bool:
    """Whether a value is plain data, an iterator or an undefined name."""
    if value is None or isinstance(value, (str, int, float, range, *_CONTAINERS)):
        return True
    kind = type(value)
    if kind.__module__ == upstream.JINJA_RUNTIME:
        return kind.__name__ == "Undefined"
    return isinstance(value, Iterator)
