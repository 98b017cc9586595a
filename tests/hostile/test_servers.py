"""Hostile servers end in one line, in time, and never send more than is allowed."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from mlx_magic.errors import FetchError
from mlx_magic.images.http import connection as http_connection
from mlx_magic.images.http import fetch as fetch_module
from mlx_magic.images.http.fetch import UrlFetcher
from mlx_magic.images.http.public_addresses import IPAddress, UrlTarget
from tests.hostile.server_cases import CASES, TLS_CASES, Case, image_bytes, serving

_MOST = 200_000
_SECONDS = 2.0


class Counting:
    """A connection that counts what comes over it."""

    received = 0

    def __init__(self, connection: http_connection.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def recv_into(self, buffer: memoryview) -> int:
        """Receive and count."""
        count = self._connection.recv_into(buffer)
        Counting.received += count
        return count


def connect(target: UrlTarget, address: IPAddress, timeout: float) -> http_connection.Connection:
    """Connect as ever, and count."""
    return Counting(http_connection.connect_to(target, address, timeout))


def this_machine(address: IPAddress) -> bool:
    return str(address) == "127.0.0.1"


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "MAX_DOWNLOAD_BYTES", _MOST)
    monkeypatch.setattr(fetch_module, "_MAX_OVERHEAD_BYTES", 150_000)
    monkeypatch.setattr(fetch_module, "TOTAL_SECONDS", 1.0)
    monkeypatch.setattr(Counting, "received", 0)


def ask(case: Case, scheme: str = "http") -> bytes | str:
    """Return the image or the line."""
    fetch = UrlFetcher(connect=connect, allowed=this_machine)
    with serving(case.serve) as port:
        try:
            return fetch(f"{scheme}://127.0.0.1:{port}/x.png")
        except FetchError as error:
            return str(error)


def judge(case: Case, scheme: str = "http") -> None:
    start = time.monotonic()
    came = ask(case, scheme)
    if case.says is None:
        assert came == image_bytes()
    else:
        assert isinstance(came, str)
        assert case.says in came
        assert came.startswith(f"{scheme}://127.0.0.1:")
        assert " was not fetched: " in came
        assert "\n" not in came
        assert len(came) < 400
    assert time.monotonic() - start < _SECONDS
    assert Counting.received < 1_100_000


@pytest.mark.parametrize("name", CASES)
def test_hostile_server_is_an_error_of_one_line(name: str) -> None:
    judge(CASES[name])


@pytest.mark.parametrize("name", TLS_CASES)
def test_hostile_tls_handshake_ends(name: str) -> None:
    judge(TLS_CASES[name], "https")


def test_image_of_the_largest_size_arrives_in_small_chunks() -> None:
    body = image_bytes() + bytes(_MOST - len(image_bytes()))

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        parts = [body[at : at + 16] for at in range(0, len(body), 16)]
        sent = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        connection.sendall(sent + b"0\r\n\r\n")

    assert ask(Case(serve, None)) == body
