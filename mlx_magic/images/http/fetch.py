"""Fetches an image by URL: only from public addresses, with limits on size and time.

The standard library's `http.client` is used because it allows passing a connected socket, so that
the address that was checked is the one that is connected to. Proxies of the environment are not
used: a proxy resolves the name itself, and its address could not be checked.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from typing import NoReturn, Protocol
from urllib.parse import urljoin

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import FetchError
from mlx_magic.formatting import amount, reason, short_label
from mlx_magic.images.formats import SNIFF_BYTES, image_format
from mlx_magic.images.http.connection import (
    Connect,
    Connection,
    OneAddressConnection,
    Resolve,
    TimedSocket,
    TooMuchReceived,
    connect_to,
    peer_address,
    resolve_name,
)
from mlx_magic.images.http.public_addresses import IPAddress, UrlTarget, is_public, parse_url

MAX_DOWNLOAD_BYTES = 20_000_000
MAX_REDIRECTS = 5
TOTAL_SECONDS = 20.0
CONNECT_SECONDS = 5.0

# Status line, headers and interim (1xx) responses together. http.client would read 100 headers of
# 64 KB, and any number of interim responses.
_MAX_HEAD_BYTES = 262_144
# Bytes of chunk sizes, chunk extensions and trailers, besides the image.
_MAX_OVERHEAD_BYTES = 2_000_000
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BLOCK = 65_536
_HEADERS = {
    "User-Agent": "mlx-magic",
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class Fetcher(Protocol):
    """The protocol of a function that fetches a URL; `UrlFetcher` is the implementation."""

    def __call__(self, url: str, *, cancel: CancelToken | None = None) -> bytes:
        """Return the whole content, or raise `FetchError` (`Cancelled` if `cancel` says so)."""
        ...


class UrlFetcher:
    """Fetches the bytes of an image from an http or https URL.

    The host's name is resolved, and only public addresses are connected to, by number; the
    certificate must be valid for the name. After connecting, the peer's address is checked again.
    Each redirect is checked in the same way; at most 5 are followed, and none from https to http.
    Cookies, credentials and proxies are not used.

    Parameters
    ----------
    resolve : callable, optional
        Host, port, timeout in seconds -> addresses.
    connect : callable, optional
        Target, address, timeout in seconds -> connection.
    clock : callable, optional
        Seconds, monotonic.
    allowed : callable, optional
        Address -> whether it may be connected to. Only for tests that serve from this machine.
    """

    def __init__(
        self,
        *,
        resolve: Resolve = resolve_name,
        connect: Connect = connect_to,
        clock: Callable[[], float] = time.monotonic,
        allowed: Callable[[IPAddress], bool] = is_public,
    ) -> None:
        self._resolve = resolve
        self._connect = connect
        self._clock = clock
        self._allowed = allowed

    def __call__(self, url: str, *, cancel: CancelToken | None = None) -> bytes:
        """Return the content of `url`.

        Raises
        ------
        FetchError
            If it was refused, unreachable, too large, too slow, or did not return an image.
        Cancelled
            If `cancel` was cancelled; noticed within a tenth of a second while receiving, and
            between the earlier steps (resolving and connecting, at most 5 s each).
        """
        end = self._clock() + TOTAL_SECONDS
        token = cancel or CancelToken()
        label = short_label(url)

        def remaining() -> float:
            token.checkpoint()
            left = end - self._clock()
            if left <= 0:
                _refuse(label, f"it took more than {TOTAL_SECONDS:.0f} seconds")
            return left

        target = _parse(url, label)
        for _ in range(MAX_REDIRECTS + 1):
            content = self._get(target, label, remaining)
            if isinstance(content, bytes):
                return content
            target = content
        _refuse(label, f"it redirects more than {MAX_REDIRECTS} times")

    def _get(
        self, target: UrlTarget, label: str, remaining: Callable[[], float]
    ) -> bytes | UrlTarget:
        """Send one request; return the content, or the target of a redirect."""
        try:
            connection = self._open(target, label, remaining)
            with closing(connection):
                timed = TimedSocket(connection, remaining, allowed=_MAX_HEAD_BYTES)
                http_connection = OneAddressConnection(target, timed)
                http_connection.request(
                    "GET", target.path, headers={"Host": target.host_header, **_HEADERS}
                )
                with closing(http_connection.getresponse()) as response:
                    if response.status in _REDIRECTS:
                        return _redirected(target, response, label)
                    return _content(response, label, timed)
        except (FetchError, Cancelled):
            raise
        except TooMuchReceived:
            _refuse(label, f"{target.host} sent too many headers, or far more than the image")
        except TimeoutError:
            _refuse(label, f"{target.host} did not answer in time{_proxy_hint()}")
        except ssl.SSLCertVerificationError as error:
            _refuse(label, f"the certificate is not valid ({error.verify_message})")
        except http.client.IncompleteRead as error:
            _refuse(label, f"the download was cut short ({reason(error)})")
        except (OSError, http.client.HTTPException) as error:
            _refuse(label, f"{target.host} failed ({reason(error)}){_proxy_hint()}")
        # http.client parses with int(), slices and codecs: invalid responses raise any exception.
        except Exception as error:
            raise FetchError(
                f"{label} was not fetched: {target.host} sent an invalid response "
                f"({reason(error)}).",
                source=label,
            ) from error

    def _open(self, target: UrlTarget, label: str, remaining: Callable[[], float]) -> Connection:
        """Connect to the first public address of the host that answers."""
        found = self._resolve(target.host, target.port, min(CONNECT_SECONDS, remaining()))
        addresses = list(dict.fromkeys(map(ipaddress.ip_address, found)))
        public = [address for address in addresses if self._allowed(address)]
        if not public:
            _refuse(label, _not_public(target.host, addresses))
        failure: OSError = OSError("no address")
        for address in public:
            try:
                connection = self._connect(target, address, min(CONNECT_SECONDS, remaining()))
            except OSError as error:
                failure = error
                continue
            try:
                # Check the actual peer, whatever happened while connecting.
                peer = peer_address(connection)
                if peer != address or not self._allowed(peer):
                    _refuse(label, f"the connection went to {peer} and not to {address}")
            except BaseException:
                connection.close()
                raise
            return connection
        raise failure


def _content(response: http.client.HTTPResponse, label: str, timed: TimedSocket) -> bytes:
    """Read an image; stop as soon as it is not an image or too large."""
    if response.status != 200:
        phrase = http.client.responses.get(response.status, "")
        _refuse(label, f"the server answered {response.status} {phrase}".rstrip())
    encoding = response.getheader("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        _refuse(label, f"it is compressed ({short_label(encoding, 20)}), which is not read here")
    transfer = response.getheader("Transfer-Encoding", "identity").strip().lower()
    if transfer not in ("", "identity", "chunked"):
        _refuse(label, f"it is sent as {short_label(transfer, 20)}, which is not read here")
    expected = response.length
    if expected is not None and expected > MAX_DOWNLOAD_BYTES:
        _too_large(label)
    timed.allow(_MAX_OVERHEAD_BYTES + 2 * _BLOCK)
    data = bytearray(response.read(SNIFF_BYTES))
    kind = response.headers.get_content_type()
    if not kind.startswith("image/") and image_format(bytes(data)) is None:
        _refuse(label, f"it sent {short_label(kind, 40)}, not an image")
    while block := response.read(_BLOCK):
        timed.allow(len(block))
        data += block
        if len(data) > MAX_DOWNLOAD_BYTES:
            _too_large(label)
    if expected is not None and len(data) < expected:
        _refuse(label, f"the download was cut short after {len(data)} of {expected} bytes")
    return bytes(data)


def _redirected(target: UrlTarget, response: http.client.HTTPResponse, label: str) -> UrlTarget:
    """Return the target of a redirect, checked like the first URL."""
    location_header = response.getheader("Location")
    if not location_header:
        _refuse(label, "it redirects without a target")
    # http.client decodes headers as Latin-1; non-ASCII URLs in them are UTF-8.
    location = location_header.encode("latin-1", "replace").decode("utf-8", "replace").strip()
    here = f"{target.scheme}://{target.host_header}{target.path}"
    try:
        target_url = urljoin(here, location.replace(" ", "%20"))
    except ValueError as error:
        _refuse(label, f"it redirects to an invalid address ({reason(error)})")
    following = _parse(target_url, label, f"it redirects to {short_label(target_url)}: ")
    if target.scheme == "https" and following.scheme == "http":
        _refuse(label, f"it redirects from https to unprotected http ({short_label(target_url)})")
    return following


def _parse(url: str, label: str, how: str = "") -> UrlTarget:
    try:
        return parse_url(url)
    except ValueError as error:
        raise FetchError(f"{label} was not fetched: {how}{error}.", source=label) from error


def _not_public(host: str, addresses: list[IPAddress]) -> str:
    if not addresses:
        return f"{host} has no address"
    shown = ", ".join(map(str, addresses[:3]))
    where = "" if shown == host else f" ({shown})"
    return f"{host}{where} is not on the public internet; download it yourself and give the path"


def _proxy_hint() -> str:
    names = ("http_proxy", "https_proxy", "all_proxy")
    used = any(os.environ.get(name) or os.environ.get(name.upper()) for name in names)
    return "; proxies of the environment are not used here" if used else ""


def _too_large(label: str) -> NoReturn:
    _refuse(label, f"it is larger than {amount(MAX_DOWNLOAD_BYTES)}")


def _refuse(label: str, why: str) -> NoReturn:
    raise FetchError(f"{label} was not fetched: {why}.", source=label)
