"""An unload, which waits for the users of the model, and the record of unloaded models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlx_magic.engine.task import Clock, Task
from mlx_magic.formatting import amount

UnloadReason = Literal["asked", "room", "idle", "budget"]

_REASON_TEXTS = {"asked": "by hand", "idle": "not used for a while", "budget": "over the budget"}


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A model that was unloaded.

    Attributes
    ----------
    name : str
    nbytes : int
        Memory that it took.
    why : {"asked", "room", "idle", "budget"}
        By hand, to make room, after its time-to-live, or since the budget was lowered.
    wanted_by : str
        The model that needed the memory.
    """

    name: str
    nbytes: int
    why: UnloadReason
    wanted_by: str = ""

    def __str__(self) -> str:
        reason = _REASON_TEXTS.get(self.why) or f"to make room for {self.wanted_by}"
        return f"{self.name} ({amount(self.nbytes)}) {reason}"


class Unload(Task["int | None"]):
    """A requested unload.

    The outcome is the number of freed bytes. It is None if the unload was cancelled, or
    withdrawn because the model was requested again: then the model is still in memory.

    Parameters
    ----------
    name : str
        The model, as it was requested.
    clock : callable
        Seconds, monotonic.
    force : bool
        Whether the requests that use the model are cancelled.

    Attributes
    ----------
    name : str
    force : bool
    cancelled : int
        Number of requests that it has cancelled.
    withdrawn : bool
        Whether the model was loaded or pinned again while the unload waited.
    begun : bool
        Whether the model is removed from the registry. Its memory may not be free yet.
    """

    def __init__(self, name: str, *, clock: Clock, force: bool = False) -> None:
        super().__init__(clock)
        self.name = name
        self.force = force
        self.cancelled = 0
        self.withdrawn = False
        self.begun = False

    def waits_for(self, users: int) -> None:
        """Show the number of users that it waits for; called under the pool's lock."""
        users_text = "its user is" if users == 1 else f"its {users} users are"
        hint = "" if self.force else " (--force cancels requests)"
        with self._lock:
            if not self._ended:
                self.enter("queued", f"unloading {self.name} once {users_text} done{hint}")

    def begin(self) -> bool:
        """Begin, unless cancelled; return whether it begins. It cannot be cancelled afterwards."""
        with self._lock:
            self.begun = not self._ended
            return self.begun

    def cancel(self) -> None:
        """Cancel the unload, if it has not begun; the model stays in memory."""
        with self._lock:
            if self._ended or self.begun:
                return
            self._end()
        self.token.cancel()
        self.future.set_result(None)

    def withdraw(self) -> None:
        """Cancel the unload because the model was requested again."""
        with self._lock:
            self.withdrawn = self.withdrawn or not (self._ended or self.begun)
        self.cancel()

    def _cancelled_outcome(self) -> None:
        return None
