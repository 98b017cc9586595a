"""An unload on its way, which may have to wait for those who use the model; and its record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlx_magic.engine.task import Clock, Task
from mlx_magic.formatting import amount

UnloadReason = Literal["asked", "room", "idle", "budget"]

_REASON_TEXTS = {"asked": "by hand", "idle": "not used for a while", "budget": "over the budget"}


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A model that has left memory.

    Attributes
    ----------
    name : str
    nbytes : int
        What it took.
    why : {"asked", "room", "idle", "budget"}
        By hand, to make room, after its time-to-live, or since the budget was lowered.
    wanted_by : str
        The model that it made room for.
    """

    name: str
    nbytes: int
    why: UnloadReason
    wanted_by: str = ""

    def __str__(self) -> str:
        reason = _REASON_TEXTS.get(self.why) or f"to make room for {self.wanted_by}"
        return f"{self.name} ({amount(self.nbytes)}) {reason}"


class Unload(Task["int | None"]):
    """An unload that somebody asked for.

    Its outcome is the bytes that came back; None if it was cancelled, or withdrawn since
    the model was asked for again: then the model is still there.

    Parameters
    ----------
    name : str
        The model, as it was asked for.
    clock : callable
        Seconds, monotonic.
    force : bool
        Whether the requests that use it were cancelled.

    Attributes
    ----------
    name : str
    force : bool
    cancelled : int
        How many requests it has cancelled.
    withdrawn : bool
        Whether the model was loaded or pinned again while this waited.
    begun : bool
        Whether the model is out, and only its memory still to come back.
    """

    def __init__(self, name: str, *, clock: Clock, force: bool = False) -> None:
        super().__init__(clock)
        self.name = name
        self.force = force
        self.cancelled = 0
        self.withdrawn = False
        self.begun = False

    def waits_for(self, users: int) -> None:
        """Say for how many users it waits now; under the pool's lock."""
        who = "its user is" if users == 1 else f"its {users} users are"
        hint = "" if self.force else " (--force cancels requests)"
        with self._lock:
            if not self._ended:
                self.enter("queued", f"unloading {self.name} once {who} done{hint}")

    def begin(self) -> bool:
        """Take the model out, unless this has been cancelled; from here on it cannot be."""
        with self._lock:
            self.begun = not self._ended
            return self.begun

    def cancel(self) -> None:
        """Leave the model where it is, if it is not on its way out already."""
        with self._lock:
            if self._ended or self.begun:
                return
            self._end()
        self.token.cancel()
        self.future.set_result(None)

    def withdraw(self) -> None:
        """End, since the model was asked for again."""
        with self._lock:
            self.withdrawn = self.withdrawn or not (self._ended or self.begun)
        self.cancel()

    def _cancelled_outcome(self) -> None:
        return None
