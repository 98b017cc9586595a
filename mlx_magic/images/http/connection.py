"""A connection to one checked address, every wait of which ends at a deadline or a cancel."""

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

# How long one wait on the socket may last before deadline and cancel are looked at again, seconds.
_SLICE = 0.1


class TooMuchReceived(Exception):  # noqa: N818 - a signal to `fetch`, never shown to a person
    """Raised when a server sends more bytes than were allowed, whatever they stand for."""


class Connection(Protocol):
    """What is used of a connected socket; tests script one."""

    def settimeout(self, value: float | None, /) -> None:
        """Set the longest wait of the next calls, in seconds."""

    def sendall(self, data: bytes, /) -> None:
        """Send everything."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Receive something; 0 is the end, TimeoutError says that nothing came."""

    def getpeername(self) -> Any:
        """Return the address really connected to, first in a tuple."""

    def close(self) -> None:
        """Hang up."""


Resolve = Callable[[str, int, float], list[str]]
"""Host, port, timeout in seconds -> addresses as text; raises OSError."""

Connect = Callable[[UrlTarget, IPAddress, float], Connection]
"""Target, the address to connect to, timeout in seconds -> connection; raises OSError."""


def resolve_name(host: str, port: int, timeout: float) -> list[str]:
    """Look a name up with the system's resolver, which by itself knows no timeout.

    Raises
    ------
    OSError
        If there is no such name, or no answer in time (TimeoutError).
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
    """Connect to exactly this address; for https, prove that it is the named host.

    Raises
    ------
    OSError
        If it cannot be reached in time, or its certificate is not valid for the name.
    """
    plain = socket.create_connection((str(address), target.port), timeout=timeout)
    if target.scheme == "http":
        return plain
    try:
        # The address is checked, the name is what the certificate must hold.
        return _tls_context().wrap_socket(plain, server_hostname=target.host)
    except BaseException:
        plain.close()
        raise


def peer_address(connection: Connection) -> IPAddress:
    """Return the address that a connection really has at its other end.

    Raises
    ------
    OSError
        If it is not connected any more.
    """
    return ipaddress.ip_address(str(connection.getpeername()[0]))


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or paths.capath):  # None where the default does not exist
        # Python from python.org on a Mac brings no certificates until a script of it was run.
        try:
            import certifi
        except ImportError:
            return context
        context.load_verify_locations(certifi.where())
    return context


class TimedSocket:
    """A connection as `http.client` wants it, each wait limited and cut into slices.

    Parameters
    ----------
    connection : Connection
    remaining : callable
        Seconds left; raises when none are left or the work was cancelled.
    allowed : int
        Bytes that may be received. They are counted here, as they come off the wire, so that no
        length or chunk size that a server claims decides how much is read.
    """

    def __init__(
        self, connection: Connection, remaining: Callable[[], float], *, allowed: int
    ) -> None:
        self._connection = connection
        self._remaining = remaining
        self._allowed = allowed
        self._received = 0

    def allow(self, more: int) -> None:
        """Allow so many bytes more."""
        self._allowed += more

    def receive_into(self, buffer: memoryview) -> int:
        """Receive something, waiting for it in slices; 0 is the end.

        Raises
        ------
        TooMuchReceived
            If more has come than is allowed.
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
        """Send everything before the deadline."""
        self._connection.settimeout(self._remaining())
        self._connection.sendall(data)

    def makefile(self, mode: str, buffering: int = -1) -> IO[bytes]:
        """Return the receiving side as a buffered file."""
        return io.BufferedReader(_Received(self))

    def close(self) -> None:
        """Do nothing: `http.client` closes while the body is still to be read."""


class _Received(io.RawIOBase):
    def __init__(self, timed: TimedSocket) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._timed.receive_into(memoryview(buffer))


class OneAddressConnection(http.client.HTTPConnection):
    """An HTTP connection over a socket that is connected already; it never connects itself."""

    def __init__(self, target: UrlTarget, timed: TimedSocket) -> None:
        super().__init__(target.host, target.port)
        self.sock = timed
        self.auto_open = 0
