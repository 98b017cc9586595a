"""Seeing a click when the kernel receives it. Only this module knows ipykernel's inside.

A running cell holds the kernel's message loop, so a click, which travels on the shell channel,
waits until the cell is over. Yet its message is *received* earlier: ipykernel 7 reads the channel
in a thread of its own, ipykernel 6 on the main thread whenever its loop turns or somebody flushes
the stream. `ShellTap` looks at each message at that point, calls the callback of a watched button
at once, and hands the message on unchanged and in order: nothing is taken out of the kernel's
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

Kernel = Any  # an ipykernel.kernelbase.Kernel; ipykernel is no dependency of ours

_log = logging.getLogger(__name__)


class ShellTap:
    """Looks at the messages of a kernel's shell channel as they are received.

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
        """Whether the kernel has the parts that this class builds on."""
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
        """Start to look; a second call changes nothing."""
        self._on_stream_thread(self._install)

    def remove(self) -> None:
        """Stop looking and leave the stream as it was found."""
        self._on_stream_thread(self._remove)

    def cell_began(self) -> None:
        """Keep clicks from now on: a client may click before `add` has been called."""
        with self._lock:
            self._running_cells += 1

    def cell_ended(self) -> None:
        """Forget kept clicks once no cell is left."""
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
        """Forget a button; an unknown one is no error."""
        with self._lock:
            self._watched.pop(comm_id, None)

    def flush(self) -> None:
        """Receive what waits in the socket, where a blocked main thread is its only reader.

        Raises
        ------
        KeyboardInterrupt
            If an interrupt came meanwhile, outside of a guarded stretch.
        """
        if not self.own_thread and threading.current_thread() is threading.main_thread():
            # An interrupt in the middle could lose a received message or leave the stream deaf.
            with _interrupts_deferred():
                self.kernel.shell_stream.flush()

    def _on_stream_thread(self, change: Callable[[], None]) -> None:
        # A ZMQStream may only be changed in the thread that runs its loop. The loop takes this
        # callback before any message that is sent after it.
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
        # If somebody else has wrapped the stream since, ours stays below theirs, doing nothing.
        if self._tapped is not None and stream._recv_callback is self._tapped:
            stream.on_recv(self._original, copy=False)
            self._tapped = self._original = None

    def _inspect(self, frames: list[Any]) -> None:
        try:
            comm_id = self._clicked(frames)
        except Exception:
            # Not a message, or not signed by a client of ours: the kernel itself reports that.
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
            # The stream must go on, and there is nobody here to raise to.
            _log.exception("The callback of a click failed.")

    def _clicked(self, frames: list[Any]) -> str | None:
        """Return the comm id of the widget that this message is a click on, if it is one."""
        session = self.kernel.session
        # parts: signature, header, parent header, metadata, content, buffers
        _, parts = session.feed_identities(frames, copy=False)
        if b"comm_msg" not in parts[1].bytes:
            return None
        packed = parts[4].bytes
        if b'"click"' not in packed:
            return None
        # With content=False the signature is checked but not kept as seen, so that the kernel
        # can still read the message; ipykernel 7 peeks at the header in the same way.
        message = session.deserialize(parts, content=False, copy=False)
        if message["header"]["msg_type"] != "comm_msg":
            return None
        content = session.unpack(packed)
        data = content["data"]
        clicked = data.get("method") == "custom" and data["content"].get("event") == "click"
        return str(content["comm_id"]) if clicked else None


def context_for_threads(kernel: Kernel) -> contextvars.Context:
    """Return the context in which a thread can send widget messages.

    Each message names the request that it belongs to. ipykernel 7.0 knows that only where the
    request is handled, and fails in a thread: there it is this one, in which this is called.
    Everything else falls back on the newest request.

    Parameters
    ----------
    kernel : ipykernel.kernelbase.Kernel or None
    """
    fails = hasattr(kernel, "_shell_parent") and not hasattr(kernel, "_shell_context")
    return contextvars.copy_context() if fails else contextvars.Context()


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Put SIGINT off until the end of the block; main thread only.

    Whoever handled it before handles it then: a guarded stretch notes it (`interrupts.deferred`),
    and elsewhere Python raises KeyboardInterrupt.
    """
    deferred: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _frame: deferred.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    for number in deferred:
        signal.raise_signal(number)
