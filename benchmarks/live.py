"""A real kernel, and a client that receives and counts its messages as a front end does."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from tests.kernel.kernel_client import Cell, Client, Message

PATIENCE = 600.0
"""Seconds that a cell may take: a GPU's first answer compiles its kernels."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message to the front end.

    Attributes
    ----------
    at : float
        Seconds on the client's clock.
    size : int
        Bytes of all its frames.
    message : dict
    """

    at: float
    size: int
    message: Message


class LiveKernel(Client):
    """A separate kernel, and everything that it has sent.

    Parameters
    ----------
    home : Path
        Empty folder for the kernel's own files and its working directory.

    Attributes
    ----------
    arrivals : list of Arrival
        Messages on the iopub channel, in order.
    """

    def __init__(self, home: Path) -> None:
        self.arrivals: list[Arrival] = []
        self._size = 0
        super().__init__([ROOT], home)
        session = self._client.session
        feed = session.feed_identities

        def weighed(frames: list[bytes], *args: Any, **kwargs: Any) -> Any:
            # All messages of the client pass through here, with all their frames.
            self._size = sum(len(frame) for frame in frames)
            return feed(frames, *args, **kwargs)

        setattr(session, "feed_identities", weighed)  # noqa: B010

    def _on_iopub(self, message: Message) -> None:
        self.arrivals.append(Arrival(time.perf_counter(), self._size, message))
        super()._on_iopub(message)

    def timed(self, code: str, timeout: float = PATIENCE) -> float:
        """Run a cell; return the seconds from the request to its reply and idle message.

        Raises
        ------
        RuntimeError
            The cell failed.
        """
        began = time.perf_counter()
        cell = self.run(code, timeout)
        ended = time.perf_counter()
        succeeded(cell)
        return ended - began

    def do(self, code: str) -> None:
        """Run a cell that must not fail."""
        self.timed(code)

    def read(self, expression: str) -> Any:
        """Return a value of the kernel that JSON can represent."""
        cell = self.run(f"import json; print(json.dumps({expression}))", PATIENCE)
        return json.loads(succeeded(cell).stdout)

    def pump(self, seconds: float) -> None:
        """Receive messages for this many seconds."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            self._take_in(max(left, 0.001))

    def cancel_button(self) -> str | None:
        """Return the comm id of the newest Cancel button, if one is open."""
        found = [
            comm_id
            for comm_id, state in self.widgets.items()
            if state.get("_model_name") == "ButtonModel" and state["description"] == "Cancel"
        ]
        return found[-1] if found else None

    def wait_for_quiet(self) -> None:
        """Wait until the views of earlier cells are closed."""
        self.wait_for(lambda: not self.widgets, "the end of all views")


def succeeded(cell: Cell) -> Cell:
    """Return the cell.

    Raises
    ------
    RuntimeError
        It failed.
    """
    if cell.status != "ok":
        raise RuntimeError(f"A cell failed: {cell.summary()}")
    return cell


@contextmanager
def live_kernel() -> Iterator[LiveKernel]:
    """Start a kernel with the magics; end it afterwards."""
    with tempfile.TemporaryDirectory() as home:
        kernel = LiveKernel(Path(home))
        try:
            kernel.do("%load_ext mlx_magic\nfrom benchmarks import in_kernel")
            yield kernel
        finally:
            kernel.close()
