"""Connections to a checked address. All waits end at the deadline or at a cancel."""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import socket
import ssl
import threading
from collections.abc import Callable
from typing import IO, Any, Protocol

from mlx_magic.images.http.public_addresses import IPAddress, UrlTarget

# Seconds of one wait on the socket, after which deadline and cancel are checked again.
_SLICE = 0.1


class TooMuchReceived(Exception):  # noqa: N818 - a signal to `fetch`, never shown to a person
    """Raised when a server sends more bytes than allowed, including headers."""


class Connection(Protocol):
    """The protocol of a connected socket; tests use a scripted one."""

    def settimeout(self, value: float | None, /) -> None:
        """Set the timeout of the next calls, in seconds."""

    def sendall(self, data: bytes, /) -> None:
        """Send all bytes."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receive some bytes; 0 is the end. Raises TimeoutError if none arrive."""

    def getpeername(self) -> Any:
        """Return the address of the peer, as first item of a tuple."""

    def close(self) -> None:
        """Close the connection."""


Resolve = Callable[[str, int, float], list[str]]
"""Host, port, timeout in seconds -> addresses as text; raises OSError."""

Connect = Callable[[UrlTarget, IPAddress, float], Connection]
"""Target, the address to connect to, timeout in seconds -> connection; raises OSError."""


def resolve_name(host: str, port: int, timeout: float) -> list[str]:
    """Resolve a name with the system's resolver, with a timeout that it does not have itself.

    Raises
    ------
    OSError
        If there is no such name, or no response in time (TimeoutError).
    """
    answers: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put([str(entry[4][0]) for entry in found])
        except OSError as error:
            answers.put(error)
        except UnicodeError as error:
            answers.put(OSError(str(error)))

    threading.Thread(target=look_up, name="mlx-magic-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError("the name was not found in time") from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def connect_to(target: UrlTarget, address: IPAddress, timeout: float) -> Connection:
    """Connect to this address; for https, verify the certificate for the host's name.

    Raises
    ------
    OSError
        If it cannot be reached in time, or the certificate is not valid for the name.
    """
    plain = socket.create_connection((str(address), target.port), timeout=timeout)
    if target.scheme == "http":
        return plain
    try:
        # The connection uses the checked address, the certificate is checked for the name.
        return _tls_context().wrap_socket(plain, server_hostname=target.host)
    except BaseException:
        plain.close()
        raise


def peer_address(connection: Connection) -> IPAddress:
    """Return the address of the peer of a connection.

    Raises
    ------
    OSError
        If it is no longer connected.
    """
    return ipaddress.ip_address(str(connection.getpeername()[0]))


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or paths.capath):  # None if the default does not exist
        # Python from python.org on macOS has no certificates until its install script was run.
        try:
            import certifi
        except ImportError:
            return context
        context.load_verify_locations(certifi.where())
    return context


class TimedSocket:
    """A socket for `http.client` whose waits are split into short ones.

    Parameters
    ----------
    connection : Connection
    remaining : callable
        Returns the seconds left; raises when there are none, or after a cancel.
    allowed : int
        Bytes that may be received. They are counted at the socket, so that the limit does not
        depend on lengths or chunk sizes that a server claims.
    """

    def __init__(
        self, connection: Connection, remaining: Callable[[], float], *, allowed: int
    ) -> None:
        self._connection = connection
        self._remaining = remaining
        self._allowed = allowed
        self._received = 0

    def allow(self, more: int) -> None:
        """Allow more bytes."""
        self._allowed += more

    def receive_into(self, buffer: memoryview) -> int:
        """Receive some bytes; 0 is the end.

        Raises
        ------
        TooMuchReceived
            If more bytes arrived than are allowed.
        """
        while True:
            self._connection.settimeout(min(_SLICE, self._remaining()))
            try:
                count = self._connection.recv_into(buffer)
            except TimeoutError:
                continue
            self._received += count
            if self._received > self._allowed:
                raise TooMuchReceived
            return count

    def sendall(self, data: bytes) -> None:
        """Send all bytes before the deadline."""
        self._connection.settimeout(self._remaining())
        self._connection.sendall(data)

    def makefile(self, mode: str, buffering: int = -1) -> IO[bytes]:
        """Return the receiving side as a buffered file."""
        return io.BufferedReader(_Received(self))

    def close(self) -> None:
        """Do nothing: `http.client` closes the socket before the body is read."""


class _Received(io.RawIOBase):
    def __init__(self, timed: TimedSocket) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._timed.receive_into(memoryview(buffer))


class OneAddressConnection(http.client.HTTPConnection):
    """An HTTP connection over a connected socket; it never reconnects."""

    def __init__(self, target: UrlTarget, timed: TimedSocket) -> None:
        super().__init__(target.host, target.port)
        self.sock = timed
        self.auto_open = 0
