"""Detects clicks when the kernel receives them. Only this module uses ipykernel's internals.

A running cell blocks the kernel's message loop, so a click, which is a message on the shell
channel, waits until the cell has ended. But the message is *received* earlier: ipykernel 7 reads
the channel in a thread of its own, ipykernel 6 on the main thread when its loop runs or the stream
is flushed. `ShellTap` inspects each message at that point, calls the callback of a watched button
at once, and forwards the message unchanged and in order: nothing is removed from the kernel's
queue, and nothing in it runs early.
"""

from __future__ import annotations

import contextvars
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlx_magic.models.upstream_checks import Mechanism

TAP = Mechanism("Cancel in cells that do not await", library="ipykernel")
"""Otherwise only the kernel's interrupt stops such a cell, and its button says so."""

Kernel = Any  # an ipykernel.kernelbase.Kernel; ipykernel is not a dependency

_log = logging.getLogger(__name__)


class ShellTap:
    """Inspects the messages of a kernel's shell channel as they are received.

    Parameters
    ----------
    kernel : ipykernel.kernelbase.Kernel
        A kernel that `supported` accepts.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._lock = threading.Lock()
        self._watched: dict[str, Callable[[], None]] = {}
        self._early_clicks: set[str] = set()
        self._running_cells = 0
        self._tapped: Callable[[list[Any]], object] | None = None
        self._original: Callable[[list[Any]], object] | None = None

    @staticmethod
    def supported(kernel: Kernel) -> bool:
        """Return whether the kernel has the attributes that this class uses."""
        stream, session = getattr(kernel, "shell_stream", None), getattr(kernel, "session", None)
        return (
            all(callable(getattr(stream, name, None)) for name in ("on_recv", "flush"))
            and hasattr(getattr(stream, "io_loop", None), "add_callback")
            and callable(getattr(stream, "_recv_callback", None))
            and getattr(stream, "_recv_copy", True) is False
            and all(
                callable(getattr(session, name, None))
                for name in ("feed_identities", "deserialize", "unpack")
            )
        )

    @property
    def own_thread(self) -> bool:
        """Whether the channel is read in a thread of its own (ipykernel 7)."""
        return getattr(self.kernel, "shell_channel_thread", None) is not None

    def install(self) -> None:
        """Start to inspect messages; idempotent."""
        self._on_stream_thread(self._install)

    def remove(self) -> None:
        """Stop, and restore the stream's callback."""
        self._on_stream_thread(self._remove)

    def cell_began(self) -> None:
        """Remember clicks from now on: a client may click before `add` is called."""
        with self._lock:
            self._running_cells += 1

    def cell_ended(self) -> None:
        """Forget remembered clicks once no cell is running."""
        with self._lock:
            self._running_cells -= 1
            if self._running_cells == 0:
                self._early_clicks.clear()

    def add(self, comm_id: str, callback: Callable[[], None]) -> None:
        """Call `callback`, in the thread that reads the channel, for each click on this button."""
        with self._lock:
            self._watched[comm_id] = callback
            clicked = comm_id in self._early_clicks
        if clicked:
            callback()

    def discard(self, comm_id: str) -> None:
        """Stop watching a button; unknown ids are ignored."""
        with self._lock:
            self._watched.pop(comm_id, None)

    def flush(self) -> None:
        """Receive pending messages, if only the (blocked) main thread reads the socket.

        Raises
        ------
        KeyboardInterrupt
            If an interrupt arrived meanwhile, outside of `interrupts.deferred`.
        """
        if not self.own_thread and threading.current_thread() is threading.main_thread():
            # An interrupt during the flush could lose a message or stop the stream.
            with _interrupts_deferred():
                self.kernel.shell_stream.flush()

    def _on_stream_thread(self, change: Callable[[], None]) -> None:
        # A ZMQStream may only be changed in the thread that runs its loop. The loop runs this
        # callback before it handles any later message.
        if self.own_thread:
            self.kernel.shell_stream.io_loop.add_callback(change)
        else:
            change()

    def _install(self) -> None:
        stream = self.kernel.shell_stream
        original = stream._recv_callback
        if original is self._tapped:
            return

        def tapped(frames: list[Any]) -> object:
            if self._running_cells or self._watched:
                self._inspect(frames)
            return original(frames)

        self._tapped, self._original = tapped, original
        stream.on_recv(tapped, copy=False)

    def _remove(self) -> None:
        stream = self.kernel.shell_stream
        # If another callback was installed on top since, ours stays, and only forwards.
        if self._tapped is not None and stream._recv_callback is self._tapped:
            stream.on_recv(self._original, copy=False)
            self._tapped = self._original = None

    def _inspect(self, frames: list[Any]) -> None:
        try:
            comm_id = self._clicked(frames)
        except Exception:
            # Not a message, or not signed by a client: the kernel reports that itself.
            _log.debug("A shell message could not be read.", exc_info=True)
            return
        if comm_id is None:
            return
        with self._lock:
            callback = self._watched.get(comm_id)
            if callback is None:
                if self._running_cells:
                    self._early_clicks.add(comm_id)
                return
        try:
            callback()
        except Exception:
            # The stream must go on, and no caller could handle the exception.
            _log.exception("The callback of a click failed.")

    def _clicked(self, frames: list[Any]) -> str | None:
        """Return the comm id of the clicked widget if the message is a click, else None."""
        session = self.kernel.session
        # parts: signature, header, parent header, metadata, content, buffers
        _, parts = session.feed_identities(frames, copy=False)
        if b"comm_msg" not in parts[1].bytes:
            return None
        packed = parts[4].bytes
        if b'"click"' not in packed:
            return None
        # With content=False the signature is checked but not recorded as used, so that the kernel
        # can still read the message; ipykernel 7 reads the header in the same way.
        message = session.deserialize(parts, content=False, copy=False)
        if message["header"]["msg_type"] != "comm_msg":
            return None
        content = session.unpack(packed)
        data = content["data"]
        clicked = data.get("method") == "custom" and data["content"].get("event") == "click"
        return str(content["comm_id"]) if clicked else None


def context_for_threads(kernel: Kernel) -> contextvars.Context:
    """Return a context in which a thread can send widget messages.

    Each message names its parent request. ipykernel 7.0 knows it only in the context that
    handles the request, and fails in another thread: there the current context is copied. All
    other versions fall back to the newest request.

    Parameters
    ----------
    kernel : ipykernel.kernelbase.Kernel or None
    """
    fails = hasattr(kernel, "_shell_parent") and not hasattr(kernel, "_shell_context")
    return contextvars.copy_context() if fails else contextvars.Context()


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Defer SIGINT until the end of the block; main thread only.

    The previous handler receives it then: `interrupts.deferred` notes it, and elsewhere Python
    raises KeyboardInterrupt.
    """
    deferred: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _frame: deferred.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    for number in deferred:
        signal.raise_signal(number)
